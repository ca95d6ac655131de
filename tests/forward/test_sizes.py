"""Conditions on free sizes: what torch.export notes and the exporter leaves out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgepeft_export.errors import ExportDiffers
from edgepeft_export.forward import from_torch
from edgepeft_export.forward.graph import Forward, SizeRange
from edgepeft_export.forward.tables import with_table_limits
from edgepeft_export.graph.shapes import dims_of


class _Branching(nn.Module):
    """A layer whose result is doubled where a condition on the length is met."""

    def __init__(self, condition: Callable[[int], bool]) -> None:
        super().__init__()
        self.layer, self.condition = nn.Linear(4, 4), condition

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * 2 if self.condition(x.shape[1]) else self.layer(x)


class _Cut(nn.Module):
    """Attention under a mask of 16 positions, which is cut to the length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.tril(torch.ones(16, 16)))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        scores = torch.where(self.mask[:length, :length] > 0, x @ x.transpose(1, 2), -9.0)
        return self.layer((scores.softmax(-1) @ x).view(-1, length, 4))


class _Positions(nn.Module):
    """Words, and 24 learned positions that are counted in some way."""

    def __init__(self, counted: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.positions, self.head = nn.Embedding(50, 4), nn.Embedding(24, 4), nn.Linear(4, 50)
        self.counted = counted

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids) + self.positions(self.counted(ids)))


def _exported(model: nn.Module) -> Forward:
    return from_torch(model, {"x": torch.randn(3, 8, 4)}, dynamic_axes={"x": {0: "batch", 1: "length"}})


@pytest.mark.parametrize(
    ("condition", "limits"),
    [
        (lambda size: size > 12, SizeRange(1, 12)),
        (lambda size: size < 5, SizeRange(5, None)),
        (lambda size: size > 900, SizeRange(1, 900)),
    ],
)
def test_a_branch_limits_the_sizes(condition: Callable[[int], bool], limits: SizeRange) -> None:
    """The graph has the branch of the example, so sizes at which the other one runs are not for it."""
    assert _exported(_Branching(condition)).limits == {"length": limits}


def test_a_branch_between_sizes_is_refused() -> None:
    """No range of sizes has one branch only."""
    with pytest.raises(ExportDiffers, match=r"where length is 9 than where it is 8|where length is 7 than"):
        _exported(_Branching(lambda size: size % 4 == 0))


def test_branches_that_compute_the_same_limit_nothing() -> None:
    """Torch's conditions are compared with what is computed past them."""
    model = _Branching(lambda size: size > 12)
    model.layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    nn.init.zeros_(model.layer[2].weight)
    nn.init.zeros_(model.layer[2].bias)
    for parameter in (*model.layer[0].parameters(), model.layer[2].bias):
        parameter.requires_grad_(False)
    assert _exported(model).limits == {}


def test_a_cut_table_limits_a_size_and_not_its_name() -> None:
    """``Min(16, length)`` is ``length``, of at most 16."""
    forward = _exported(_Cut())
    assert forward.limits == {"length": SizeRange(1, 16)}
    assert dims_of(forward.model.graph.outputs[0]) == ["batch", "length", 4]


@pytest.mark.parametrize(
    ("counted", "most"),
    [
        (lambda ids: torch.arange(ids.shape[1]), 24),
        (lambda ids: torch.arange(ids.shape[1]) + 2, 22),
        (lambda ids: (ids != 1).cumsum(1) * (ids != 1) + 1, 22),
        (lambda ids: torch.arange(ids.shape[1]).clamp(max=23), None),
        (lambda ids: torch.arange(ids.shape[1]) % 24, None),
    ],
    ids=["from-0", "from-2", "after-the-padding", "clamped", "repeated"],
)
def test_a_table_of_positions_limits_a_size(counted: Callable[[Tensor], Tensor], most: int | None) -> None:
    """The last length has a row for each position, and the next one has not: torch raises there too."""
    model = _Positions(counted)
    forward = from_torch(model, {"ids": torch.full((2, 8), 7)}, dynamic_axes={"ids": {0: "batch", 1: "length"}})
    assert with_table_limits(forward).limits == ({} if most is None else {"length": SizeRange(1, most)})
    model(torch.full((1, most or 99), 7))
    if most is not None:
        with pytest.raises(IndexError):
            model(torch.full((1, most + 1), 7))


class _Compared(nn.Module):
    """Rows of two tensors, joined, which are doubled where one is longer than the other."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 4), factor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        joined = self.layer(torch.cat([x, y], 1))
        return joined * self.factor if x.shape[1] > y.shape[1] else joined


def test_a_branch_on_two_sizes_is_refused() -> None:
    """No range of one size has one branch only, unless both compute the same."""
    inputs = {"x": torch.randn(2, 5, 4), "y": torch.randn(2, 8, 4)}
    axes = {"x": {1: "short"}, "y": {1: "long"}}
    with pytest.raises(ExportDiffers, match=r"where (long is 5 than where it is 8|short is 9 than where it is 5)"):
        from_torch(_Compared(2.0), inputs, dynamic_axes=axes)
    assert from_torch(_Compared(1.0), inputs, dynamic_axes=axes).limits == {}
