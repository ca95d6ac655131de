"""Queries of passes and rules about the nodes around a value."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.shapes import Dim, dims_of


def present(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``, or ``None`` where the node leaves it out."""
    return node.inputs[index] if len(node.inputs) > index else None


def operand(node: ir.Node, index: int = 0) -> ir.Value:
    """The input at ``index``, which every node of this type has."""
    value = present(node, index)
    assert value is not None, f"{node.op_type} (node {node.name}) has no input {index}"
    return value


def operands(node: ir.Node, count: int | None = None) -> list[ir.Value]:
    """The first ``count`` inputs, or all of them, where every node of this type has these."""
    return [operand(node, index) for index in range(len(node.inputs) if count is None else count)]


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes ``value``, where it is of that type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node of that type that alone reads ``value``, or ``None``."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        return None
    return uses[0].node


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the input that is not ``value``, of a node with two inputs."""
    left, right = node.inputs
    return right if left is value else left


def added_vector(value: ir.Value, size: Dim) -> tuple[ir.Value, ir.Value] | None:
    """``(bias, sum)`` where the only reader of ``value`` is an ``Add`` of a vector of that size."""
    add = only_reader(value, "Add")
    bias = other_input(add, value) if add is not None else None
    if add is None or bias is None or bias.shape is None:
        return None
    return (bias, add.outputs[0]) if dims_of(bias) == [size] else None
