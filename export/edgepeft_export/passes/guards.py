"""Ensures that attention has no guards against NaN that cannot act, which cost two passes over its scores.

Pattern: ``p = Softmax(scores)`` with ``Where(IsNaN(p), 0, p)``. Exporters write it because a mask of -inf over a whole
row makes 0 / 0. The gradient would have to cross the guard as well.
Check: the scores are sums and products of matmuls and of finite constants (transformers masks with the lowest number).
Then only infinite or NaN scores could make a NaN, which means that the run has diverged. That should show.
Algebra: ``p`` has no NaN, so ``Where(IsNaN(p), 0, p) = p``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import known
from edgepeft_export.graph.edit import eliminate_node
from edgepeft_export.graph.linear import MATMULS
from edgepeft_export.graph.match import producer_of
from edgepeft_export.graph.shapes import is_float

_PROPAGATES_INFINITY = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Where", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice"}
)
"""Operators whose result is infinite only where an operand is."""


def drop_guards(model: ir.Model) -> bool:
    """Remove the guards that cannot act on a finite run, in place. Returns whether there was one."""
    guards = [node for node in model.graph if (scores := _guarded_scores(node)) is not None and _is_finite(scores)]
    for node in guards:
        eliminate_node(node, input_index=2)
    return bool(guards)


def _guarded_scores(node: ir.Node) -> ir.Value | None:
    """The scores of the softmax whose NaNs the node turns into zeros."""
    if node.op_type != "Where" or node.domain or node.outputs[0].is_graph_output():
        return None
    condition, zero, given = node.inputs
    is_nan, softmax, number = producer_of(condition, "IsNaN"), producer_of(given, "Softmax"), known(zero)
    if is_nan is None or softmax is None or is_nan.inputs[0] is not given or number is None or np.any(number):
        return None
    return softmax.inputs[0]


def _is_finite(value: ir.Value) -> bool:
    """Whether a tensor is finite as long as the matmuls in it are: no constant or input of it is infinite."""
    constant = known(value)
    if constant is not None:
        return bool(np.all(np.isfinite(constant)))
    node = value.producer()
    if node is None:
        return value.dtype is not None and not is_float(value)
    if node.op_type in MATMULS:
        return True
    if node.op_type not in _PROPAGATES_INFINITY:
        return False
    operands = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return all(_is_finite(operand) for operand in operands if operand is not None)
