"""Operators that read at positions computed at run time. Their gradients write where they read.

Positions may repeat, so gradients are added. That is always ``ScatterElements``: ``ScatterND`` with
``reduction="add"`` loses updates of repeated positions on ONNX Runtime's CPU when it runs on several threads (seen with
1.31).
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.padding import Amount, add_at, counted, padded
from edgepeft_export.autodiff.rules.reading import axis_of, zeros_like
from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, operands
from edgepeft_export.graph.shapes import dims_of, rank
from edgepeft_export.opset.domains import ML


@rule("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """A gather along the last axis."""
    data, indices = operands(node)
    if rank(data) == 1:  # the result has an axis of size 1 in front
        dy = emit.op("Squeeze", dy, emit.ints(0))
    flat = emit.op("Reshape", indices, emit.ints(-1))
    return (add_at(zeros_like(data, emit), flat, dy, rank(data) - 1, 0, emit),)


@rule("Gather")
def gather(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    data, indices = operands(node)
    axis = axis_of(node, 0, rank(data))
    positions = known_ints(indices)
    if positions is not None and len(positions) == 1 and rank(indices) < 2:
        return (_one_slice(dy, data, axis, positions[0], rank(indices) == 0, emit),)
    trailing = rank(data) - axis - 1
    if rank(indices) != 1:
        if 0 in dims_of(data):
            return (zeros_like(data, emit),)
        dy = emit.op("Reshape", dy, _with_one_axis(data, axis, emit))
    return (add_at(zeros_like(data, emit), indices, dy, axis, trailing, emit),)


def _one_slice(dy: ir.Value, data: ir.Value, axis: int, position: int, dropped: bool, emit: Emitter) -> ir.Value:
    """Put a single known position back by padding."""
    if dropped:
        dy = emit.op("Unsqueeze", dy, emit.ints(axis))
    size = dims_of(data)[axis]
    others: Amount
    if isinstance(size, int):
        others = size - 1 - position if position >= 0 else size + position
    else:
        others = emit.op("Sub", emit.dim(data, axis), emit.ints(position + 1 if position >= 0 else -position))
    before_and_after = (position, others) if position >= 0 else (others, -1 - position)
    return padded(dy, rank(data), {axis: before_and_after}, emit)


def _with_one_axis(data: ir.Value, axis: int, emit: Emitter) -> ir.Value:
    """The shape of a gradient of Gather with all axes of the indices flattened into one."""
    trailing = dims_of(data)[axis + 1 :]
    sizes = [size for size in trailing if isinstance(size, int)]
    if len(sizes) == len(trailing):
        return emit.ints(*[0] * axis, -1, *sizes)
    tail = [emit.dim(data, trailing_axis) for trailing_axis in range(axis + 1, rank(data))]
    return emit.op("Concat", emit.ints(*[0] * axis, -1), *tail, axis=0)


@rule("GatherElements")
def gather_elements(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    data = operand(node)
    axis = axis_of(node, 0, rank(data))
    zeros = zeros_like(data, emit)
    return (emit.op("ScatterElements", zeros, node.inputs[1], dy, axis=axis, reduction="add"),)


@rule("GatherND")
def gather_nd(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Flatten the indexed axes into rows, number the rows, and add into them."""
    data, indices = operands(node)
    batch = int(node.attributes.get_int("batch_dims", 0))
    depth = dims_of(indices)[-1]
    if not isinstance(depth, int):
        raise NoGradientForCase(node, "the length of its index tuples is not known", "declare the shape of its indices")
    rows = row_numbers(data, indices, batch, depth, emit)
    flat_dy = emit.op("Flatten", dy, axis=rank(indices) - 1)
    flat = emit.op("Flatten", zeros_like(data, emit), axis=batch + depth)
    return (emit.op("Reshape", add_at(flat, rows, flat_dy, 0, 1, emit), emit.shape_of(data), allowzero=1),)


def row_numbers(data: ir.Value, indices: ir.Value, batch: int, depth: int, emit: Emitter) -> ir.Value:
    """The index tuples as row numbers, where the indexed axes (and the batch axes before them) are flattened."""
    sizes = [emit.dim(data, axis) for axis in range(batch, batch + depth)]
    strides = [emit.ints(1)]
    for size in reversed(sizes):
        strides.insert(0, emit.op("Mul", strides[0], size))
    whole, steps = strides[0], strides[1:]
    indices = emit.cast(indices, ir.DataType.INT64)
    extent = emit.op("Concat", *sizes, axis=0)
    wrapped = emit.op("Where", emit.op("Less", indices, emit.ints(0)), emit.op("Add", indices, extent), indices)
    numbered = emit.op("Mul", wrapped, emit.op("Concat", *steps, axis=0))
    rows = emit.op("ReduceSum", numbered, emit.ints(-1), keepdims=0)
    if not batch:
        return rows
    per_batch = emit.op("Flatten", rows, axis=batch)
    count = emit.op("Shape", per_batch, start=0, end=1)
    offsets = emit.op("Mul", counted(count, emit), whole)
    return emit.op("Add", per_batch, emit.op("Unsqueeze", offsets, emit.ints(1)))


@rule("TopK")
def top_k(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    x = operand(node)
    axis = axis_of(node, -1, rank(x))
    return (emit.op("ScatterElements", zeros_like(x, emit), node.outputs[1], dy, axis=axis),)


@rule("Unique")
def unique(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Each value is that of its first occurrence, whose position is the second output."""
    x, axis = operand(node), node.attributes.get_int("axis", None)
    if len(node.outputs) < 2:
        node.resize_outputs(2)
    positions = node.outputs[1]
    positions.name = positions.name or f"{node.outputs[0].name}.indices"
    positions.dtype = ir.DataType.INT64
    zeros = zeros_like(x, emit)
    if axis is None:
        flat = emit.op("Reshape", zeros, emit.ints(-1))
        added = emit.op("ScatterElements", flat, positions, dy, axis=0)
        return (emit.op("Reshape", added, emit.shape_of(x), allowzero=1),)
    axis %= rank(x)
    return (add_at(zeros, positions, dy, axis, rank(x) - axis - 1, emit),)
