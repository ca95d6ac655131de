"""Cuts a graph into the segments of a program."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.program.cuts import find_cuts
from edgepeft_export.program.library import BLOCK, START
from edgepeft_export.program.periods import grouped
from edgepeft_export.program.reads import matmuls
from edgepeft_export.program.segments import Segment, numbers_of, segments_of
from edgepeft_export.program.structure import Bound, Structure, structure_of


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
    kinds = [structure_of(piece, bound).digest for piece in pieces]
    joined = {
        index: number
        for number, group in enumerate(grouped(kinds, [_matmuls(piece) for piece in pieces]))
        for index in group
    }
    position = {number: index for index, number in enumerate(sorted(set(numbers.values())))}
    numbers = {node: joined[position[number]] for node, number in numbers.items()}
    segments = segments_of(graph, numbers, parameters)
    return Cut(graph, tuple(structure_of(segment, bound) for segment in segments))


def _matmuls(segment: Segment) -> int:
    return sum(matmuls(node) for node in segment.nodes)
