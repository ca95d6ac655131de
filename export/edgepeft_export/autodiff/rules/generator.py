"""Operators that make a tensor out of a few numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import ZERO, Gradients, Upstream, rule
from edgepeft_export.autodiff.rules.padding import counted
from edgepeft_export.autodiff.rules.reading import axis_of, first
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import is_float, rank


@rule("Range")
def range_(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """start + i · delta; the limit only says how many."""
    if not is_float(first(node)):
        return ()
    start = first(node)
    assert start.dtype is not None
    numbers = emit.op("Cast", counted(emit.op("Shape", node.outputs[0]), emit), to=int(start.dtype))
    dstart = emit.op("ReduceSum", upstream[0], keepdims=0)
    return dstart, ZERO, emit.op("ReduceSum", emit.op("Mul", upstream[0], numbers), keepdims=0)


@rule("OneHot")
def one_hot(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """Its values, off and on, are each copied to many places; indices and depth may be floats, and act by jumps."""
    indices, depth, values = node.inputs
    assert values is not None
    if not is_float(values):
        return ()
    assert values.dtype is not None
    axis = axis_of(node, -1, rank(node.outputs[0]))
    zero_and_one = emit.constant(np.asarray([0, 1], dtype=values.dtype.numpy()))
    hot = emit.op("OneHot", indices, depth, zero_and_one, axis=axis)
    on = emit.op("ReduceSum", emit.op("Mul", upstream[0], hot), keepdims=0)
    off = emit.op("Sub", emit.op("ReduceSum", upstream[0], keepdims=0), on)
    both = [emit.op("Reshape", number, emit.ints(1)) for number in (off, on)]
    return ZERO, ZERO, emit.op("Concat", *both, axis=0)
