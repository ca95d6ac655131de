"""Softmax and its logarithm. Both read what the forward pass computed."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, rule
from edgepeft_export.autodiff.rules.reading import axis_of
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import rank


@rule("Softmax")
def softmax(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """y (dy - Σ dy y) = p - y Σ p with p = dy y."""
    y, axis = _finite(node, emit), axis_of(node, -1, rank(node.outputs[0]))
    product = emit.op("Mul", dy, y)
    total = emit.op("ReduceSum", product, emit.ints(axis), keepdims=1)
    return (emit.op("Sub", product, emit.op("Mul", y, total)),)


@rule("LogSoftmax")
def log_softmax(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dy - exp(y) Σ dy."""
    y, axis = node.outputs[0], axis_of(node, -1, rank(node.outputs[0]))
    total = emit.op("ReduceSum", dy, emit.ints(axis), keepdims=1)
    return (emit.op("Sub", dy, emit.op("Mul", emit.op("Exp", y), total)),)


def _finite(node: ir.Node, emit: Emitter) -> ir.Value:
    """The softmax, with 0 for NaN where the model guards against fully masked rows (all -inf)."""
    y = node.outputs[0]
    if not _is_guarded(y):
        return y
    return emit.op("Where", emit.op("IsNaN", y), emit.scalar(0.0, like=operand(node)), y)


def _is_guarded(value: ir.Value) -> bool:
    """Whether a reader of ``value``, or of what it was cast to, selects."""
    readers = value.consumers()
    if any(reader.op_type in ("Where", "IsNaN") for reader in readers):
        return True
    return any(
        _is_guarded(reader.outputs[0]) for reader in readers if reader.op_type in ("Cast", "CastLike", "Identity")
    )
