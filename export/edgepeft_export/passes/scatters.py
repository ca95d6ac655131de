"""Ensures that a gradient of a few elements is added where they are, without a tensor of zeros.

Pattern: ``Add(x, ScatterElements(0, indices, updates, reduction="add"))``, where the zeros are those that a gradient
rule emits. The label's part of a cross-entropy's gradient is one element of each row of logits.
Algebra: ``ScatterElements(x, indices, updates, reduction="add")``, which onnxruntime computes within x.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.edit import remove_node, replace_node
from edgepeft_export.graph.match import only_reader, other_input, producer_of


def scatter_into_sums(graph: ir.Graph) -> bool:
    """Let sums scatter into their other operand, in place. Returns whether one did."""
    edited = False
    for add in [node for node in graph if node.op_type == "Add" and not node.domain]:
        scatter = next(filter(None, (_scattered(value, add) for value in add.inputs)), None)
        base = other_input(add, scatter.outputs[0]) if scatter is not None else None
        if scatter is None or base is None:
            continue
        replace_node(add, _into(base, scatter))
        remove_node(scatter)
        edited = True
    return edited


def _scattered(value: ir.Value | None, add: ir.Node) -> ir.Node | None:
    """The node that adds single elements to zeros, which ``add`` alone reads."""
    node = producer_of(value, "ScatterElements")
    if node is None or value is None or only_reader(value, "Add") is not add:
        return None
    adds = node.attributes.get_string("reduction", "none") == "add"
    return node if adds and producer_of(node.inputs[0], "ConstantOfShape") is not None else None


def _into(base: ir.Value, scatter: ir.Node) -> ir.Node:
    inputs = [base, *scatter.inputs[1:]]
    return ir.Node("", "ScatterElements", inputs, scatter.attributes.values(), name=scatter.name)
