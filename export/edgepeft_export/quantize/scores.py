"""Finds the matmuls that compute a model's scores, whose gradient is rounded more finely."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.constants import known
from edgepeft_export.quantize.weights import Weight

_KEEP = frozenset({"Add", "Sub", "Cast", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tanh", "Unsqueeze"})
"""Operators between a head and the scores: biases, adapters, caps, layout."""

_SCALE = frozenset({"Mul", "Div"})
"""Only by constants: a norm multiplies by what it computes."""


def is_score(value: ir.Value) -> bool:
    """Whether a tensor is an output of the model, perhaps after a bias, an adapter, a constant factor or a cap."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        if current.is_graph_output():
            return True
        for use in current.uses():
            if use.node.op_type in _KEEP or _is_scaling(use.node, current):
                fresh = [output for output in use.node.outputs if output not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return False


def is_head(weight: Weight) -> bool:
    """Whether every matmul of the weight computes scores, whose gradient needs no limit on pairs."""
    matmuls = [use.node for use in weight.value.uses() if use.node.op_type != "Gather"]
    return all(is_score(node.outputs[0]) for node in matmuls)


def _is_scaling(node: ir.Node, value: ir.Value) -> bool:
    others = [other for other in node.inputs if other is not value]
    return node.op_type in _SCALE and all(known(other) is not None for other in others)
