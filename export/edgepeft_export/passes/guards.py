"""Spares attention two passes over its scores, which guard against what cannot happen.

Exporters write ``p = Softmax(scores + mask); Where(IsNaN(p), 0, p)``, since a mask of -inf over a whole row makes
0 / 0, and the gradient has to cross the guard as well. Where the mask is made of finite numbers (transformers masks
with the lowest one), only scores that are infinite or NaN themselves could do that: a run that has diverged, which
should be seen, not hidden.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

PASSES_ON = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Where", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice"}
)
"""Operators whose result is infinite where an operand is."""

PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})


def drop_guards(model: ir.Model) -> bool:
    """Take out the guards that cannot act on a finite run, in place. Returns whether there was one."""
    dropped = False
    for node in list(model.graph):
        softmax = _guarded(node)
        if softmax is not None and softmax.inputs[0] is not None and _is_finite(softmax.inputs[0]):
            node.outputs[0].replace_all_uses_with(softmax.outputs[0], replace_graph_outputs=True)
            dropped = True
    return dropped


def _guarded(node: ir.Node) -> ir.Node | None:
    """The softmax whose NaNs the node turns into zeros."""
    if node.op_type != "Where" or node.domain or node.outputs[0].is_graph_output():
        return None
    condition, zero, given = node.inputs
    is_nan = condition.producer() if condition is not None else None
    softmax = given.producer() if given is not None else None
    if is_nan is None or softmax is None or is_nan.op_type != "IsNaN" or softmax.op_type != "Softmax":
        return None
    constant = ir.convenience.get_const_tensor(zero) if zero is not None else None
    is_zero = constant is not None and not np.any(constant.numpy())
    return softmax if is_nan.inputs[0] is given and is_zero else None


def _is_finite(value: ir.Value) -> bool:
    """Whether a tensor is finite as long as the products in it are: no constant or input of it brings an infinity."""
    constant = ir.convenience.get_const_tensor(value)
    if constant is not None:
        return bool(np.all(np.isfinite(constant.numpy())))
    node = value.producer()
    if node is None:
        return value.dtype is not None and not value.dtype.is_floating_point()
    if node.op_type in PRODUCTS:
        return True
    operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return node.op_type in PASSES_ON and all(_is_finite(operand) for operand in operands if operand is not None)
