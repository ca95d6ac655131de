"""The section ``adapter`` of a manifest: pairs as they were declared, also where shapes would allow another reading."""

from __future__ import annotations

import json
import math

import pytest

from edgepeft_runtime.bundle.adapter_layout import AdapterLayout, LowRankPair, check_adapter
from edgepeft_runtime.errors import BundleError
from edgepeft_runtime.files.schema import read, write

Shape = tuple[int, ...]

FITTING: list[tuple[str, int, int, Shape, Shape]] = [
    ("torch", 1, 2, (2, 4), (6, 2)),
    ("torch", 1, 8, (8, 4), (4, 8)),
    ("torch", 1, 2, (2, 4, 3, 3), (6, 2, 1, 1)),
    ("torch", 4, 2, (8, 2, 3, 3), (16, 2, 1, 1)),
    ("experts", 3, 2, (6, 4), (5, 6)),
    ("graph", 1, 2, (4, 2), (2, 6)),
    ("graph", 1, 8, (8, 8), (8, 8)),
    ("graph", 1, 8, (4, 8), (8, 4)),
]
"""Layout, groups, rank, and the shapes of A and B."""


def _pair(layout: str, groups: int, rank: int, scale: float = 2.0) -> LowRankPair:
    return LowRankPair("layer", "a", "b", layout, groups, rank, scale)


@pytest.mark.parametrize(("layout", "groups", "rank", "a", "b"), FITTING)
def test_declared_pairs_fit_their_shapes(layout: str, groups: int, rank: int, a: Shape, b: Shape) -> None:
    """Each layout accepts its shapes and refuses another rank, transposed matrices and a wrong number of groups."""
    pair = _pair(layout, groups, rank)
    assert pair.fits(a, b)
    assert a[pair.rank_axis] == groups * rank
    assert not _pair(layout, groups, rank + 1).fits(a, b)
    assert not _pair(layout, groups + 1, rank).fits(a, b)
    assert not pair.fits(a, b[:1]) and not pair.fits(a[:1], b[:1])
    assert a == b or not pair.fits(b, a)


def test_the_layout_survives_json() -> None:
    """Writing and reading returns an equal layout."""
    layout = AdapterLayout((_pair("torch", 1, 2), _pair("graph", 1, 3, 0.5)), ("w",), 16, ("a", "c"))
    text = json.dumps(write(layout))
    assert read(AdapterLayout, json.loads(text), "adapter") == layout


def test_a_restricted_layout_has_whole_pairs_alone() -> None:
    """A pair with one half left is none; masks and prompt tokens stay."""
    layout = AdapterLayout((_pair("torch", 1, 2),), ("w",), 16, ("a",))
    assert layout.restricted_to({"a", "b", "c"}) == layout
    assert layout.restricted_to({"a"}) == AdapterLayout((), ("w",), 16, ("a",))
    assert layout.restricted_to({"b"}) == AdapterLayout((), ("w",), 16, ())


SHAPES = {"a": ("lora_A", (2, 4)), "b": ("lora_B", (6, 2)), "w": ("weight", (3,))}


@pytest.mark.parametrize(
    "layout",
    [
        AdapterLayout((LowRankPair("layer", "b", "a", "graph", 1, 2, 1.0),)),
        AdapterLayout((LowRankPair("layer", "a", "w", "torch", 1, 2, 1.0),)),
        AdapterLayout((LowRankPair("layer", "a", "missing", "torch", 1, 2, 1.0),)),
        AdapterLayout((_pair("torch", 1, 2), _pair("torch", 1, 2))),
        AdapterLayout((_pair("torch", 1, 2, 0.0),)),
        AdapterLayout((_pair("torch", 1, 2, math.inf),)),
        AdapterLayout(non_trainable=("w",)),
        AdapterLayout(non_trainable=("missing",)),
    ],
)
def test_contradictory_layouts_are_refused(layout: AdapterLayout) -> None:
    """Roles, names, ranks, scales and trained elements have to agree with the parameters."""
    with pytest.raises(BundleError, match=r"low-rank pair|non-trainable"):
        check_adapter(layout, SHAPES, set(SHAPES))


def test_non_trainable_parameters_are_named_once() -> None:
    """Exactly those that do not train, each once."""
    check_adapter(AdapterLayout((_pair("torch", 1, 2),), non_trainable=("a",)), SHAPES, {"b", "w"})
    for names in ((), ("a", "a"), ("a", "w")):
        with pytest.raises(BundleError, match=r"low-rank pair|non-trainable"):
            check_adapter(AdapterLayout(non_trainable=names), SHAPES, {"b", "w"})
