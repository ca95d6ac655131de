"""Dataclasses as JSON: values round-trip, and errors name the path of the wrong value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from edgepeft_runtime.files.schema import BadFields, Check, Json, Mark, Natural, Sha256, Shape, one_of, read, write


@dataclass(frozen=True)
class Leaf:
    """A part."""

    name: str
    shape: Shape
    classes: Annotated[int | None, Mark.OMITTED] = None


@dataclass(frozen=True)
class Tree:
    """A whole."""

    kind: Annotated[str, one_of(("oak", "elm"))]
    lr: float
    hash: Sha256
    key: bytes = field(repr=False)
    size: tuple[Natural, Natural]
    leaves: tuple[Leaf, ...]
    counts: dict[str, Natural]
    parent: Natural | None
    rest: Annotated[Json, Mark.REST]
    note: Annotated[str | None, Mark.OPTIONAL] = None
    even: Annotated[int, Check("an even number", lambda value: value % 2 == 0)] = 0


TREE: dict[str, Any] = {
    "kind": "oak",
    "lr": 1,
    "hash": "ab" * 32,
    "key": "cd" * 32,
    "size": [3, 4],
    "leaves": [{"name": "a", "shape": ["batch", 2]}, {"name": "b", "shape": [], "classes": 3}],
    "counts": {"x": 1},
    "parent": None,
    "even": 2,
    "further": [1, "two"],
}


def test_what_is_written_is_read_again() -> None:
    """Lists become tuples, hex becomes bytes, an integer is accepted for a float, unnamed keys are the rest."""
    tree = read(Tree, TREE, "tree")
    assert (tree.lr, tree.key, tree.size, tree.rest) == (1.0, bytes.fromhex("cd" * 32), (3, 4), {"further": [1, "two"]})
    assert tree.leaves == (Leaf("a", ("batch", 2)), Leaf("b", (), 3))
    assert write(tree) == {**TREE, "note": None}
    assert read(Tree, write(tree), "tree") == tree


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "ash"}, "tree: the field 'kind' is wrong.\nexpected one of oak, elm, found 'ash'"),
    ({"lr": True}, "tree: the field 'lr' is wrong.\nexpected float, found True"),
    ({"lr": "1"}, "expected float"),
    ({"hash": "AB" * 32}, "expected 64 lower-case hexadecimal digits"),
    ({"key": "cd"}, "tree: the field 'key' is wrong.\nexpected 64 lower-case hexadecimal digits, found 2 characters"),
    ({"size": [3]}, "expected a list of 2"),
    ({"size": [3, -1]}, "expected a list, each an integer of at least 0"),
    ({"leaves": [TREE["leaves"][0], {"name": "c"}]}, "tree: leaves[1] lacks the field 'shape'."),
    ({"leaves": [{"name": "c", "shape": [-1]}]}, "tree: leaves[0]: the field 'shape' is wrong."),
    ({"leaves": [{"name": "c", "shape": [], "clases": 1}]}, "tree: leaves[0] has unknown fields."),
    ({"leaves": [1]}, "tree: leaves[0] is not a JSON object."),
    ({"counts": {"x": 1.5}}, "expected an object, each int"),
    ({"parent": "x"}, "tree: the field 'parent' is wrong."),
    ({"note": 1}, "tree: the field 'note' is wrong."),
    ({"even": 3}, "expected an even number, found 3"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_what_is_wrong_is_named(change: dict[str, Any], said: str) -> None:
    """The error names the field, the expected and the actual value; of a key not the actual one."""
    with pytest.raises(BadFields) as error:
        read(Tree, TREE | change, "tree")
    assert said in f"{error.value.message}\n{error.value.context}"


@pytest.mark.parametrize("name", [name for name in TREE if name != "further"])
def test_no_field_may_be_missing(name: str) -> None:
    """Whether it has a default or not; only a mark allows it."""
    with pytest.raises(BadFields, match=f"lacks the field '{name}'"):
        read(Tree, {key: value for key, value in TREE.items() if key != name}, "tree")
