"""Cuts a graph into the segments of a program."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.nested.bodies import reads
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.memory.liveness import ALIASES, size_of
from edgepeft_export.program.cuts import find_cuts
from edgepeft_export.program.library import BLOCK, START
from edgepeft_export.program.periods import Piece, grouped
from edgepeft_export.program.reads import matmuls
from edgepeft_export.program.segments import Segment, numbers_of, segments_of
from edgepeft_export.program.structure import Bound, Structure, structure_of

NOMINAL = 64
"""The size of symbolic dimensions by which pieces are compared."""


@dataclass(frozen=True)
class Cut:
    """A graph and its segments.

    Attributes:
        graph: the graph.
        segments: their structures, in the order they run.
        opsets: its operator sets.
    """

    graph: ir.Graph
    segments: tuple[Structure, ...]

    @property
    def opsets(self) -> Mapping[str, int]:
        """The operator sets of the graph."""
        return self.graph.opset_imports

    def role(self, index: int, head: str) -> str:
        """The role of a segment; ``head`` is that of the last one."""
        if index == len(self.segments) - 1:
            return head
        return START if index == 0 else BLOCK


def cut(model: ir.Model, parameters: Collection[str], bound: Bound) -> Cut:
    """Cut a graph into segments: one where it has no cuts.

    Args:
        model: merged nodes are changed in place.
        parameters: names of the inputs that are no part of the batch.
        bound: which tensors a call binds.
    """
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)  # of the masks that each block computes one is left
    common.RemoveUnusedNodesPass()(model)
    graph = model.graph
    numbers = numbers_of(graph, find_cuts(graph, parameters))
    pieces = segments_of(graph, numbers, parameters)
    measured = _measured(pieces, graph, numbers, parameters, bound)
    joined = {index: number for number, group in enumerate(grouped(measured)) for index in group}
    position = {number: index for index, number in enumerate(sorted(set(numbers.values())))}
    numbers = {node: joined[position[number]] for node, number in numbers.items()}
    segments = segments_of(graph, numbers, parameters)
    return Cut(graph, tuple(structure_of(segment, bound) for segment in segments))


def _measured(
    pieces: Sequence[Segment],
    graph: ir.Graph,
    numbers: Mapping[ir.Node, int],
    parameters: Collection[str],
    bound: Bound,
) -> list[Piece]:
    symbols = sorted(_symbols(graph, parameters))
    found: list[Piece] = []
    for piece in pieces:
        made = [node for node in piece.nodes if node in numbers and node.op_type not in ALIASES]
        read = {value.name for node in piece.nodes for value in reads(node) if value.is_graph_input()}
        trains = (bool(found) and found[-1].trains) or not read.isdisjoint(parameters)
        sizes = [_bytes(output, symbols) for node in made for output in node.outputs]
        kept = sum(_bytes(output, symbols) for output in piece.outputs)
        inside = sum(sizes) if trains else max(sizes, default=0)
        count = sum(matmuls(node) for node in piece.nodes)
        found.append(Piece(structure_of(piece, bound).digest, count, inside, kept, trains))
    return found


def _bytes(value: ir.Value, symbols: Sequence[str]) -> int:
    """The bytes of an activation if each symbolic dimension has the nominal size."""
    sizes = size_of(value, symbols).items()
    return sum(count * NOMINAL ** len(product.split("*")) if product else count for product, count in sizes)


def _symbols(graph: ir.Graph, parameters: Collection[str]) -> set[str]:
    inputs = [value for value in graph.inputs if value.name not in parameters and value.shape is not None]
    return {dim for value in inputs for dim in dims_of(value) if isinstance(dim, str)}
