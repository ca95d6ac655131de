"""Groups of coupled slices: rows and columns of tensors that must be removed together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slices:
    """The part of one tensor that a group's units own.

    Attributes:
        name: Name of the module.
        module: The module with the tensor.
        tensor: Name of the parameter or buffer in the module.
        axis: The axis along which it is cut.
        indices: int64 [units, width], the positions along ``axis`` that each unit owns.
        reads: Whether these weights multiply the unit's output (columns of the next layer).
        scored: Whether the norm of these weights measures the importance of the unit.
    """

    name: str
    module: nn.Module
    tensor: str
    axis: int
    indices: Tensor
    reads: bool = False
    scored: bool = True

    def value(self) -> Tensor:
        """Return the whole tensor."""
        value: Tensor = getattr(self.module, self.tensor)
        return value


@dataclass(frozen=True)
class Count:
    """An attribute of a module that counts units: ``per_unit`` for each unit that stays."""

    module: nn.Module
    attribute: str
    per_unit: int


@dataclass(frozen=True)
class Group:
    """Units (heads, neurons, channels) that can be removed one by one.

    Attributes:
        name: Name of the module that the units belong to.
        kind: ``heads``, ``ffn`` or ``channels``, as in the settings.
        units: Number of units.
        slices: All slices that belong to the units.
        counts: Attributes that count the units.
    """

    name: str
    kind: str
    units: int
    slices: tuple[Slices, ...]
    counts: tuple[Count, ...] = ()


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``: a linear layer whose weight is [inputs, outputs]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_matrix(module: nn.Module) -> bool:
    """Whether it is a linear layer, in either layout."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv(module: nn.Module) -> bool:
    """Whether it is a convolution of one, two or three dimensions."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def input_axis(module: nn.Module) -> int:
    """Return the axis of a layer's weight for its inputs."""
    return 0 if is_conv1d(module) else 1


def blocks(units: int, width: int, start: int = 0) -> Tensor:
    """Return the indices [units, width] of consecutive units from ``start`` on."""
    return torch.arange(start, start + units * width).reshape(units, width)


def computing(name: str, module: nn.Module, indices: Tensor, scored: bool = True) -> Iterator[Slices]:
    """Yield the rows of a linear layer or convolution that compute the units."""
    yield Slices(name, module, "weight", 1 - input_axis(module), indices, scored=scored)
    if module.bias is not None:
        yield Slices(name, module, "bias", 0, indices, scored=scored)


def reading(name: str, module: nn.Module, indices: Tensor) -> Slices:
    """Return the columns of a linear layer or convolution that read the units."""
    return Slices(name, module, "weight", input_axis(module), indices, reads=True)
