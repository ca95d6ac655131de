"""How constants and readers are recognised in a graph that was read from a file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_CARRIES = frozenset({"DequantizeLinear", "QuantizeLinear", "Transpose", "Cast", "Reshape", "Identity", "BitwiseXor"})
"""Operators between a stored weight and the product that reads it."""


def root(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a constant is made of, ``None`` where a value is no constant."""
    if value is None or value.is_graph_input():
        return None
    node = value.producer()
    if node is None:
        return value if value.const_value is not None else None
    if node.op_type not in _CARRIES or node.domain:
        return None
    roots = [root(read) for read in node.inputs if read is not None]
    return roots[0] if roots and all(found is not None for found in roots) else None


def only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node of that type where nothing else reads ``value``."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        return None
    return uses[0].node


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Of a node with two inputs, the one that is not ``value``."""
    left, right = node.inputs
    return right if left is value else left


def same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two values are one, or equal constants."""
    if one is other:
        return True
    if one is None or other is None or one.const_value is None or other.const_value is None:
        return False
    left, right = one.const_value.numpy(), other.const_value.numpy()
    return left.dtype == right.dtype and bool(np.array_equal(left, right))


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of ``old`` read ``new``, which gets its name, shape and type."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
