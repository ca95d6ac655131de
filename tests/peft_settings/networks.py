"""Small networks to which adapters are attached, with an input for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """A network of this set.

    Attributes:
        build: Makes the network.
        inputs: Makes its example, of 4 rows.
        causal: Whether it is a language model.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    causal: bool = False


class Chain(nn.Module):
    """Modules one after the other, by name; a tensor with further axes is averaged over them before ``last``."""

    def __init__(self, modules: Mapping[str, nn.Module], last: int) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.last = nn.Linear(last, 3)
        self.names = tuple(modules)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = torch.tanh(getattr(self, name)(x))
        axes = tuple(range(1, x.ndim - 1)) if x.shape[-1] == self.last.in_features else tuple(range(2, x.ndim))
        return self.last(x.mean(axes) if axes else x)


class Attention(nn.Module):
    """torch's own attention with one weight for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


def _rows() -> nn.Module:
    return Chain({"inner": nn.Linear(8, 16), "norm": nn.LayerNorm(16), "outer": nn.Linear(16, 8)}, 8)


def _table() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Chain({"table": nn.Embedding(12, 8), "conv": Conv1D(8, 8)}, 8)


def _convolution(kind: type[nn.Module], kernel: int, groups: int = 1) -> Callable[[], nn.Module]:
    return lambda: Chain({"conv": kind(4, 8, kernel, groups=groups), "inner": nn.Flatten(2)}, 8)


def _llama() -> nn.Module:
    from tests.support.networks import NETWORKS

    return NETWORKS["llama"].model()


def _floats(*shape: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"x": torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))}


def _ids(name: str, count: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {name: torch.randint(3, count, (4, 6), generator=torch.Generator().manual_seed(1))}


EXAMPLES: Mapping[str, Example] = {
    "linear": Example(_rows, _floats(8)),
    "table": Example(_table, _ids("x", 12)),
    "conv1d": Example(_convolution(nn.Conv1d, 3), _floats(4, 9)),
    "conv2d": Example(_convolution(nn.Conv2d, 3), _floats(4, 6, 7)),
    "conv2d 1x1": Example(_convolution(nn.Conv2d, 1), _floats(4, 6, 7)),
    "conv2d groups": Example(_convolution(nn.Conv2d, 3, 2), _floats(4, 6, 7)),
    "conv3d": Example(_convolution(nn.Conv3d, 2), _floats(4, 4, 5, 3)),
    "attention": Example(Attention, _floats(5, 8)),
    "llama": Example(_llama, _ids("input_ids", 101), causal=True),
}
