"""Low-rank adaptation of recurrent networks, which Hugging Face ``peft`` lacks.

Each weight matrix has one pair for all gates: for an LSTM ``W + (alpha / rank) B A`` with A [rank, in] and
B [4·hidden, rank], for a GRU B [3·hidden, rank]. All steps share a weight, so it is adapted once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from edgepeft.methods.support.around import Around
from edgepeft.methods.support.attached_pair import AttachedPair

_WEIGHTS = ("weight_ih", "weight_hh")
"""Input to gates, and hidden state to gates; each layer and direction has both."""


class LoraRecurrent(Around):
    """A frozen ``nn.LSTM`` or ``nn.GRU`` whose weight matrices have low-rank pairs, called like the network.

    Args:
        base: The network, which is frozen.
        rank: Rank of the pairs.
        alpha: The pairs' scale is ``alpha / rank``.
    """

    def __init__(self, base: nn.RNNBase, rank: int, alpha: float) -> None:
        super().__init__(base.requires_grad_(False))
        self.scaling = alpha / rank
        adapted = {name: w for name, w in base.named_parameters() if name.startswith(_WEIGHTS)}
        self.lora_A = nn.ParameterDict({name: w.new_empty(rank, w.shape[1]) for name, w in adapted.items()})
        self.lora_B = nn.ParameterDict({name: w.new_zeros(w.shape[0], rank) for name, w in adapted.items()})
        for matrix in self.lora_A.values():
            nn.init.kaiming_uniform_(matrix, a=5**0.5)

    def pairs(self) -> Iterator[AttachedPair]:
        """Yield the pair of each adapted matrix."""
        for name, matrix in self.lora_A.items():
            yield AttachedPair(matrix, self.lora_B[name], matrix.shape[0], self.scaling, weight=name)

    def forward(self, *args: object, **kwargs: object) -> object:
        return torch.func.functional_call(self.base, self.adapted(), args, kwargs)

    def adapted(self) -> dict[str, Tensor]:
        """Return the weights with the products of their pairs added."""
        return {
            name: self.base.get_parameter(name) + (self.lora_B[name] @ matrix) * self.scaling
            for name, matrix in self.lora_A.items()
        }


def recurrent_modules(model: nn.Module) -> list[str]:
    """Return the names of the LSTM and GRU networks that can be adapted; ONNX has no projections."""
    wrapped = {id(module.base) for module in model.modules() if isinstance(module, LoraRecurrent)}
    return [
        name
        for name, module in model.named_modules()
        if name and isinstance(module, nn.LSTM | nn.GRU) and not module.proj_size and id(module) not in wrapped
    ]


def attach_recurrent(model: nn.Module, names: Sequence[str], rank: int, alpha: float) -> None:
    """Add pairs to the weights of the recurrent networks of these names, in place."""
    for name in names:
        model.set_submodule(name, LoraRecurrent(model.get_submodule(name), rank, alpha))
