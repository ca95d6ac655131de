"""Operators that generate a tensor from a few numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import ZERO, Gradients, rule
from edgepeft_export.autodiff.rules.padding import counted
from edgepeft_export.autodiff.rules.reading import axis_of
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, operands
from edgepeft_export.graph.shapes import dtype_of, is_float, rank


@rule("Range")
def range_(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """y = start + i · delta. The limit only sets the number of elements."""
    if not is_float(operand(node)):
        return ()
    numbers = emit.cast(counted(emit.op("Shape", node.outputs[0]), emit), dtype_of(operand(node)))
    dstart = emit.op("ReduceSum", dy, keepdims=0)
    return dstart, ZERO, emit.op("ReduceSum", emit.op("Mul", dy, numbers), keepdims=0)


@rule("OneHot")
def one_hot(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Its two values, off and on, are each copied many times. Indices and depth may be floats, and act by jumps."""
    indices, depth, values = operands(node)
    if not is_float(values):
        return ()
    axis = axis_of(node, -1, rank(node.outputs[0]))
    zero_and_one = emit.constant(np.asarray([0, 1], dtype=dtype_of(values).numpy()))
    hot = emit.op("OneHot", indices, depth, zero_and_one, axis=axis)
    on = emit.op("ReduceSum", emit.op("Mul", dy, hot), keepdims=0)
    off = emit.op("Sub", emit.op("ReduceSum", dy, keepdims=0), on)
    both = [emit.op("Reshape", number, emit.ints(1)) for number in (off, on)]
    return ZERO, ZERO, emit.op("Concat", *both, axis=0)
