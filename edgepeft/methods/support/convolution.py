"""LoRA on convolutions with dilation or groups, which ``peft`` cannot adapt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from edgepeft.methods.support.around import Around
from edgepeft.methods.support.attached_pair import AttachedPair

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def own_convolutions(model: nn.Module) -> list[str]:
    """Return the names of the convolutions that peft cannot adapt."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _KINDS) and (module.groups > 1 or set(module.dilation) != {1})
    ]


def attach_convolutions(model: nn.Module, names: Sequence[str], rank: int, alpha: float) -> None:
    """Add a pair of convolutions to each of these, in place. No other parameter is frozen or marked.

    The first of a pair has the window, dilation and groups of the frozen one; the second is 1x1. Each group has its own
    pair, of the given rank or of the group's size if that is smaller.
    """
    for name in names:
        model.set_submodule(name, LoraConvolution(model.get_submodule(name), rank, alpha / rank))


class LoraConvolution(Around):
    """``base(x) + scale · lora_B(lora_A(x))``: kernels ``[groups * rank, in, *kernel]`` and ``[out, rank, *ones]``."""

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__(base)
        kind = next(kind for kind in _KINDS if isinstance(base, kind))
        groups = base.groups
        rank = min(rank, base.out_channels // groups, base.weight[0].numel())
        self.scale = scale
        self.lora_A = kind(
            base.in_channels,
            rank * groups,
            base.kernel_size,
            stride=base.stride,
            padding=base.padding,
            dilation=base.dilation,
            groups=groups,
            bias=False,
            padding_mode=base.padding_mode,
        )
        self.lora_B = kind(rank * groups, base.out_channels, 1, groups=groups, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def pairs(self) -> Iterator[AttachedPair]:
        """Yield the pair of kernels."""
        a, b = self.lora_A.weight, self.lora_B.weight
        yield AttachedPair(a, b, b.shape[1], self.scale, self.lora_B.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))
