"""The values that nodes read, and which values depend on which."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from edgepeft_export.graph.linear import MATMULS
from edgepeft_export.graph.nested.bodies import graphs_of, reads


def matmuls(node: ir.Node) -> int:
    """The number of matmuls of a node and its subgraphs: a loss in chunks multiplies by the head in a loop."""
    return (node.op_type in MATMULS) + sum(matmuls(inner) for graph in graphs_of(node) for inner in graph)


def depending_on(order: Sequence[ir.Node], roots: Collection[ir.Value]) -> set[ir.Value]:
    """The roots, and every value computed from one of them."""
    depends = set(roots)
    for node in order:
        if not depends.isdisjoint(reads(node)):
            depends.update(node.outputs)
    return depends


def ancestors(graph: ir.Graph, values: Collection[ir.Value]) -> set[ir.Value]:
    """The values, and every value that they are computed from."""
    needed = set(values)
    for node in reversed(list(graph)):
        if not needed.isdisjoint(node.outputs):
            needed.update(reads(node))
    return needed
