"""Operators that only move elements. Their gradients move them back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, Upstream, rule, rule_of_outputs
from edgepeft_export.autodiff.rules.reading import axis_of, known_axes, reshaped_like
from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import dims_of, rank


@rule("Reshape", "Flatten")
def reshape(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (reshaped_like(dy, dims_of(node.outputs[0]), operand(node), emit),)


@rule("Squeeze")
def squeeze(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    axes = known_axes(node, rank(operand(node)))
    if not axes:
        return reshape(node, dy, emit)
    return (emit.op("Unsqueeze", dy, emit.ints(*axes)),)


@rule("Unsqueeze")
def unsqueeze(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    axes = known_axes(node, rank(node.outputs[0]))
    return (emit.op("Squeeze", dy, present(node, 1) if axes is None else emit.ints(*axes)),)


@rule("Transpose")
def transpose(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    order = node.attributes.get_ints("perm", None)
    if order is None:
        return (emit.op("Transpose", dy),)
    return (emit.op("Transpose", dy, perm=[int(axis) for axis in np.argsort(order)]),)


@rule("Expand", broadcasts=True)
def expand(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (dy,)


@rule("Concat")
def concat(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    if len(node.inputs) == 1:
        return (dy,)
    axis = axis_of(node, 0, rank(node.outputs[0]))
    parts = [value for value in node.inputs if value is not None]
    sizes = [dims_of(value)[axis] for value in parts]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        lengths = emit.ints(*known)
    else:
        lengths = emit.op("Concat", *[emit.dim(value, axis) for value in parts], axis=0)
    return emit.ops("Split", dy, lengths, outputs=len(parts), axis=axis)


@rule_of_outputs("Split")
def split(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    x = operand(node)
    parts = [
        emit.zeros(emit.shape_of(output), like=x) if gradient is None else gradient
        for output, gradient in zip(node.outputs, upstream, strict=True)
    ]
    return (emit.op("Concat", *parts, axis=axis_of(node, 0, rank(x))),)


@rule("Tile")
def tile(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Reshape so that the copies lie along axes of their own, and sum over those."""
    x, repeats = operand(node), known_ints(present(node, 1))
    dims = dims_of(x)
    copies = emit.ints(*range(0, 2 * len(dims), 2))
    if repeats is not None and all(isinstance(dim, int) for dim in dims):
        layout = emit.ints(*[int(size or 0) for pair in zip(repeats, dims, strict=True) for size in pair])
    else:
        columns = [emit.op("Unsqueeze", vector, emit.ints(1)) for vector in (present(node, 1), emit.shape_of(x))]
        layout = emit.op("Reshape", emit.op("Concat", *columns, axis=1), emit.ints(-1))
    return (emit.op("ReduceSum", emit.op("Reshape", dy, layout, allowzero=1), copies, keepdims=0),)


@rule("Trilu")
def trilu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    upper = int(node.attributes.get_int("upper", 1))
    return (emit.op("Trilu", dy, present(node, 1), upper=upper),)


@rule("DepthToSpace")
def depth_to_space(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    block = int(node.attributes["blocksize"].as_int())
    folded = emit.op("SpaceToDepth", dy, blocksize=block)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        return (folded,)
    # SpaceToDepth puts the blocks before the channels, mode CRD after them.
    x = operand(node)
    height, width = emit.dim(x, 2), emit.dim(x, 3)
    apart = emit.op("Concat", emit.ints(0, block * block, -1), height, width, axis=0)
    swapped = emit.op("Transpose", emit.op("Reshape", folded, apart), perm=[0, 2, 1, 3, 4])
    return (reshaped_like(swapped, None, x, emit),)


@rule("SpaceToDepth")
def space_to_depth(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("DepthToSpace", dy, blocksize=int(node.attributes["blocksize"].as_int())),)


@rule("ReverseSequence")
def reverse_sequence(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    batch, time = (int(node.attributes.get_int(name, axis)) for name, axis in (("batch_axis", 1), ("time_axis", 0)))
    return (emit.op("ReverseSequence", dy, node.inputs[1], batch_axis=batch, time_axis=time),)
