"""Ensures that no Identity stands between a value and its readers, save where a graph needs one.

A branch of an ``If`` that passes an outer value through is such a place: what a graph gives has to be made in it.
"""

from __future__ import annotations

import onnx_ir as ir


def drop_identities(model: ir.Model) -> None:
    """Take out the Identity nodes of a graph and of the graphs within it, in place."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type == "Identity" and not node.domain and node.inputs[0] is not None:
            _drop(node, node.inputs[0], node.outputs[0])


def _drop(node: ir.Node, read: ir.Value, given: ir.Value) -> None:
    if given.is_graph_output():
        if not _may_be_given(read, node):
            return
        read.name, given.name = given.name, None
    if read.shape is None:
        read.shape = given.shape
    if read.type is None:
        read.type = given.type
    given.replace_all_uses_with(read, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _may_be_given(value: ir.Value, node: ir.Node) -> bool:
    """Whether a value can be an output of the node's graph under another name: made in it, and no output yet."""
    producer = value.producer()
    return producer is not None and producer.graph is node.graph and not value.is_graph_output()
