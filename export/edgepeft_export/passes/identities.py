"""Ensures that no Identity stands between a value and its readers, save where a graph needs one.

Pattern and algebra: ``Identity(x) = x``. A graph needs one in a branch of an ``If`` that passes an outer value through,
because the outputs of a graph have to be computed in it.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.edit import eliminate_node


def drop_identities(model: ir.Model) -> None:
    """Remove the Identity nodes of a graph and of its subgraphs, in place."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        given = node.inputs[0] if node.op_type == "Identity" and not node.domain else None
        if given is not None and (not node.outputs[0].is_graph_output() or _may_be_output(given, node)):
            eliminate_node(node)


def _may_be_output(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value can be an output of the node's graph under another name: computed in it, and no output yet."""
    producer = value.producer()
    return producer is not None and producer.graph is node.graph and not value.is_graph_output()
