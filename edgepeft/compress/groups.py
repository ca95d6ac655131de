"""Groups of coupled slices: which rows and columns of which tensors have to go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slices:
    """The part of one tensor that a group's units own.

    Attributes:
        name: of the module.
        module: that holds the tensor.
        tensor: name of the parameter or buffer in the module.
        axis: along which it is cut.
        indices: int64 [units, width], the places along ``axis`` that each unit owns.
        reads: whether these are weights that multiply what the unit computed (columns of the next layer).
        scored: whether the norm of these weights says how much the unit matters.
    """

    name: str
    module: nn.Module
    tensor: str
    axis: int
    indices: Tensor
    reads: bool = False
    scored: bool = True

    def value(self) -> Tensor:
        """The whole tensor."""
        found: Tensor = getattr(self.module, self.tensor)
        return found


@dataclass(frozen=True)
class Count:
    """An attribute of a module that says how many there are: ``per_unit`` for each unit that stays."""

    module: nn.Module
    attribute: str
    per_unit: int


@dataclass(frozen=True)
class Group:
    """Units (heads, neurons, channels) that can be removed one by one.

    Attributes:
        name: of the module they belong to.
        kind: ``heads``, ``ffn`` or ``channels``, as in the settings.
        units: how many there are.
        slices: everything that belongs to them.
        counts: attributes to keep in step.
    """

    name: str
    kind: str
    units: int
    slices: tuple[Slices, ...]
    counts: tuple[Count, ...] = ()


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``: a linear layer with its weight stored [inputs, outputs]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_matrix(module: nn.Module) -> bool:
    """Whether it is a linear layer, stored either way."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv(module: nn.Module) -> bool:
    """Whether it is a convolution of one, two or three dimensions."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def input_axis(module: nn.Module) -> int:
    """The axis of a layer's weight along which its inputs lie."""
    return 0 if is_conv1d(module) else 1


def blocks(units: int, width: int, start: int = 0) -> Tensor:
    """Indices [units, width] of units that lie one after the other from ``start`` on."""
    return torch.arange(start, start + units * width).reshape(units, width)


def computing(name: str, module: nn.Module, indices: Tensor, scored: bool = True) -> Iterator[Slices]:
    """The rows of a linear layer or convolution that compute the units."""
    yield Slices(name, module, "weight", 1 - input_axis(module), indices, scored=scored)
    if module.bias is not None:
        yield Slices(name, module, "bias", 0, indices, scored=scored)


def reading(name: str, module: nn.Module, indices: Tensor) -> Slices:
    """The columns of a linear layer or convolution that read the units."""
    return Slices(name, module, "weight", input_axis(module), indices, reads=True)
