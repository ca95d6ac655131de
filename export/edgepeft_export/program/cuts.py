"""Finds the values at which a forward graph can be cut.

The stream of activations starts where a weight is multiplied by, or a row of a table is looked up. Everything that
depends on a value ``x`` of the stream passes through the *post-dominators* of ``x`` on its way to the loss: in a
transformer, the sums after each attention and each feed-forward part. They are the cuts. A tensor that several pieces
read beside the stream (an encoder's output, a bias by position) does not hide them, as the stream does not start there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.linear import MATMULS
from edgepeft_export.graph.nested.bodies import reads
from edgepeft_export.graph.shapes import is_float
from edgepeft_export.program.reads import depending_on, matmuls

_SIZES = frozenset({"Shape", "Size"})


def find_cuts(graph: ir.Graph, parameters: Collection[str]) -> tuple[ir.Value, ...]:
    """The values, in order, at which a forward graph can be cut: between two cuts there is a matmul.

    Args:
        graph: in topological order, with shapes.
        parameters: names of the inputs that are no part of the batch.
    """
    order = list(graph)
    stream = _Stream.of(order, depending_on(order, [value for value in graph.inputs if value.name not in parameters]))
    ends = _ends(order, stream)
    starts = [start for roots in _together(stream, ends) if (start := _start(roots, stream, ends)) is not None]
    found = {value for start in starts for value in _of_chain(start, stream, ends)}
    starts = [start for start in starts if _goes_on(start, stream, ends, found)]
    return tuple(sorted({*found, *starts}, key=lambda value: stream.made[value]))


@dataclass(frozen=True)
class _Stream:
    """The activations.

    Attributes:
        made: the index of the node that computes each of them.
        before: the number of matmuls up to that node.
        total: the number of all matmuls.
        roots: those that depend on no other.
    """

    made: Mapping[ir.Value, int]
    before: Mapping[ir.Value, int]
    total: int
    roots: tuple[ir.Value, ...]

    @classmethod
    def of(cls, order: Sequence[ir.Node], batch: Collection[ir.Value]) -> _Stream:
        made: dict[ir.Value, int] = {}
        before: dict[ir.Value, int] = {}
        roots: list[ir.Value] = []
        count = 0
        for at, node in enumerate(order):
            if node.outputs[0] not in batch:
                continue
            count += matmuls(node)
            continues = any(value in made for value in reads(node))
            if node.op_type not in _SIZES and (continues or _reads_weight(node, batch)):
                made.update((output, at) for output in node.outputs)
                before.update((output, count) for output in node.outputs)
                roots += [] if continues else node.outputs
        return cls(made, before, count, tuple(roots))

    def may_be_cut(self, value: ir.Value) -> bool:
        """Whether a value is a float tensor with a matmul after it."""
        return is_float(value) and value.shape is not None and len(value.shape) > 0 and self.before[value] < self.total


def _reads_weight(node: ir.Node, batch: Collection[ir.Value]) -> bool:
    """Whether a node multiplies by a tensor that does not depend on the batch, or looks up its rows."""
    if node.op_type == "Gather":
        table = node.inputs[0]
        return table is not None and table not in batch and table.shape is not None and len(table.shape) > 1
    return node.op_type in MATMULS and any(value not in batch for value in reads(node))


class _Ends:
    """The tree of post-dominators: the next value that everything computed from a value passes through."""

    def __init__(self) -> None:
        self._next: dict[ir.Value, ir.Value | None] = {}
        self._depth: dict[ir.Value | None, int] = {None: 0}

    def add(self, value: ir.Value, readers: Collection[ir.Value]) -> None:
        """Add a value all of whose readers' outputs are in the tree."""
        after = self.common(list(readers))
        self._next[value], self._depth[value] = after, self._depth[after] + 1

    def common(self, values: Sequence[ir.Value]) -> ir.Value | None:
        """The first value that everything computed from these passes through; one of them may be it."""
        first: ir.Value | None = values[0] if values else None
        for other in values[1:]:
            second: ir.Value | None = other
            while first is not second:
                if self._depth[first] < self._depth[second]:
                    first, second = second, first
                assert first is not None  # only the end has depth 0
                first = self._next[first]
        return first

    def chain(self, value: ir.Value | None) -> Iterator[ir.Value]:
        """The value and its post-dominators, in order."""
        while value is not None:
            yield value
            value = self._next[value]


def _ends(order: Sequence[ir.Node], stream: _Stream) -> _Ends:
    readers: dict[ir.Value, dict[ir.Value, None]] = {}
    ends = _Ends()
    for node in reversed(order):
        outputs = [output for output in node.outputs if output in stream.made]
        for output in outputs:
            ends.add(output, readers.get(output, {}))
        for value in reads(node):
            if value in stream.made:
                readers.setdefault(value, {}).update(dict.fromkeys(outputs))
    return ends


def _of_chain(start: ir.Value, stream: _Stream, ends: _Ends) -> Iterator[ir.Value]:
    """The first post-dominator after each matmul, from the first matmul after the start on."""
    count = stream.before[start]
    for value in ends.chain(start):
        if stream.before[value] > count and stream.may_be_cut(value):
            count = stream.before[value]
            yield value


def _together(stream: _Stream, ends: _Ends) -> list[list[ir.Value]]:
    """Roots whose sum is one activation: the tables of one embedding, a layer and the adapter beside it."""
    groups: dict[object, list[list[ir.Value]]] = {}
    for root in stream.roots:
        node = root.producer()
        assert node is not None
        if not _is_looked_up(root):
            groups.setdefault(node.inputs[0], [[]])[0].append(root)
            continue
        found = groups.setdefault(stream.before[root], [])
        joined = next((group for group in found if _meet_at_once([*group, root], stream, ends)), None)
        if joined is None:
            found.append([root])
        else:
            joined.append(root)
    return [group for found in groups.values() for group in found]


def _meet_at_once(roots: Sequence[ir.Value], stream: _Stream, ends: _Ends) -> bool:
    """Whether rows of tables meet before the next matmul."""
    meeting = ends.common(roots)
    return meeting is not None and stream.before[meeting] == stream.before[roots[0]]


def _is_looked_up(root: ir.Value) -> bool:
    node = root.producer()
    return node is not None and node.op_type == "Gather"


def _start(roots: Sequence[ir.Value], stream: _Stream, ends: _Ends) -> ir.Value | None:
    """Where the roots meet; after layers, the last value before the next matmul: with positions, or after pooling."""
    meeting = ends.common(roots)
    if meeting is None:
        return None
    count = stream.before[meeting]
    values = [value for value in ends.chain(meeting) if stream.before[value] == count and stream.may_be_cut(value)]
    looked_up = _is_looked_up(roots[0])
    if not values or (looked_up and stream.before[roots[0]] != count):
        return None
    return values[0 if looked_up else -1]


def _goes_on(start: ir.Value, stream: _Stream, ends: _Ends, cuts: Collection[ir.Value]) -> bool:
    """Whether the stream from a start has the next cut: that of a bias by position has not."""
    following = next((value for value in ends.chain(start) if value in cuts and value is not start), None)
    later = min((stream.made[cut] for cut in cuts if stream.made[cut] > stream.made[start]), default=None)
    return following is not None and stream.made[following] == later
