"""Branches with a condition that only the run knows: an ``If`` with explicit inputs, and back."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.constants import is_frozen
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.match import operand, operands
from edgepeft_export.graph.nested.bodies import captured, give_inputs
from edgepeft_export.graph.nested.inlining import replace_by

THEN, OTHERWISE = "then", "otherwise"


def with_inputs(node: ir.Node, op_type: str, domain: str) -> dict[ir.Value, ir.Value]:
    """Replace an ``If`` by a node that reads what its branches read, except constants.

    Returns:
        The new value for each output.
    """
    names = {"then_branch": THEN, "else_branch": OTHERWISE}
    bodies = {ours: node.attributes[theirs].as_graph() for theirs, ours in names.items()}
    copies = {name: body.clone(allow_outer_scope_values=True) for name, body in bodies.items()}
    read = dict.fromkeys(value for body in copies.values() for value in captured(body))
    values = [value for value in read if not is_frozen(value)]
    assert node.graph is not None
    node.graph.opset_imports.setdefault(domain, 1)
    for body in copies.values():
        give_inputs(body, values)
        body.opset_imports.update(node.graph.opset_imports)
    attributes = [ir.AttrGraph(name, body) for name, body in copies.items()]
    inputs = [operand(node), *values]
    new = ir.Node(domain, op_type, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
    node.prepend(new)
    return replace_by(node, new.outputs)


def write_if(node: ir.Node) -> None:
    """Replace a node with explicit inputs by an ``If``, in place."""
    condition, *values = operands(node)
    bodies = {"then_branch": THEN, "else_branch": OTHERWISE}
    attributes = []
    for theirs, ours in bodies.items():
        body = node.attributes[ours].as_graph()
        for inner, outer in zip(list(body.inputs), values, strict=True):
            inner.replace_all_uses_with(outer)
        body.inputs.clear()
        attributes.append(ir.AttrGraph(theirs, body))
    node.attributes.clear()
    new = ir.Node("", "If", [condition], attributes, num_outputs=len(node.outputs), name=f"{node.name}/If")
    node.prepend(new)
    for old, made in zip(node.outputs, new.outputs, strict=True):
        replace_value(old, made)
    remove_node(node)
