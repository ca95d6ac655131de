"""What nodes read, and which values depend on which."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from edgepeft_export.graph.linear import MATMULS


def reads(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, and the values of outer scopes that its subgraphs read."""
    values = [value for value in node.inputs if value is not None]
    return values + [value for graph in _graphs(node) for value in _captured(graph)]


def matmuls(node: ir.Node) -> int:
    """The number of matmuls of a node and its subgraphs: a loss in chunks multiplies by the head in a loop."""
    return (node.op_type in MATMULS) + sum(matmuls(inner) for graph in _graphs(node) for inner in graph)


def _graphs(node: ir.Node) -> list[ir.Graph]:
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    return graphs


def _captured(graph: ir.Graph) -> list[ir.Value]:
    own = {*graph.inputs, *graph.initializers.values()} | {output for node in graph for output in node.outputs}
    read = [value for node in graph for value in reads(node)] + list(graph.outputs)
    return [value for value in read if value not in own]


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
