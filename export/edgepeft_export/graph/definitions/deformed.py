"""Convolutions whose taps move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.definitions.algebra import Term
from edgepeft_export.graph.definitions.registry import NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dtype_of, rank, static_dims


@definition("DeformConv")
def deformable(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """Each tap reads the image at its index plus an offset, between pixels (Dai et al., ICCV 2017; Zhu et al., 2019).

    The moved taps are points of one ``GridSample``, and the kernel multiplies what they read. Channels are divided into
    ``offset_group`` parts with offsets of their own, which are images of a batch here.
    """
    x, kernel, offset, bias, mask = (*given, None, None)[:5]
    assert x is not None and kernel is not None and offset is not None
    sizes = static_dims(kernel)
    if sizes is None or len(sizes) != 4 or offset.shape is None or x.shape is None or rank(x) != 4:
        raise NotDefined("its kernel is no constant of four axes", "convolve images with a constant kernel")
    outputs, inputs, *window = sizes
    groups, parts = node.attributes.get_int("group", 1), node.attributes.get_int("offset_group", 1)
    taps, channels = window[0] * window[1], inputs * groups
    height, width = emit.dim(offset, 2), emit.dim(offset, 3)
    moved = emit.op("Reshape", offset, _joined(emit, emit.ints(-1, taps, 2), height, width))
    points = [_points(node, axis, window, (x, moved, offset), emit) for axis in (1, 0)]  # the last axis first
    grid = emit.op("Concat", *(emit.op("Unsqueeze", each.value, emit.ints(-1)) for each in points), axis=-1)
    images = emit.op("Reshape", x, _joined(emit, emit.ints(-1, channels // parts), emit.dim(x, 2), emit.dim(x, 3)))
    mode = "linear" if emit.graph.opset_imports.get("", 20) >= 20 else "bilinear"
    flat = emit.op("Reshape", grid, emit.ints(0, -1, 1, 2))
    read = emit.op("GridSample", images, flat, mode=mode, padding_mode="zeros", align_corners=0)
    if mask is not None:
        weights = emit.op("Reshape", mask, _joined(emit, emit.ints(-1, 1, taps), height, width))
        read = emit.op("Mul", read, emit.op("Reshape", weights, emit.ints(0, 1, -1, 1)))
    size = emit.op("Mul", height, width)
    columns = emit.op("Reshape", read, _joined(emit, emit.ints(-1, groups, inputs * taps), size))
    matrices = emit.op("Reshape", kernel, emit.ints(1, groups, outputs // groups, inputs * taps))
    y = emit.op("MatMul", matrices, columns)
    y = emit.op("Reshape", y, _joined(emit, emit.ints(-1, outputs), height, width))
    return (y if bias is None else emit.op("Add", y, emit.op("Reshape", bias, emit.ints(1, outputs, 1, 1))),)


def _points(
    node: ir.Node, axis: int, window: Sequence[int], values: tuple[ir.Value, ir.Value, ir.Value], emit: Emitter
) -> Term:
    """One coordinate of all moved taps, from -1 to 1 between the edges of the image, [parts, taps, height, width]."""
    x, moved, offset = values
    stride, dilation = (node.attributes.get_ints(name, (1, 1))[axis] for name in ("strides", "dilations"))
    before = node.attributes.get_ints("pads", (0, 0, 0, 0))[axis]
    tap = np.indices(window)[axis].reshape(-1, 1, 1) * dilation - before
    dtype = dtype_of(offset)
    count = emit.op("Squeeze", emit.dim(offset, 2 + axis), emit.ints(0))
    numbers = emit.cast(emit.op("Range", emit.index(0), count, emit.index(1)), dtype)
    starts = emit.op("Reshape", numbers, emit.ints(-1, 1) if axis == 0 else emit.ints(1, -1))
    fixed = Term(starts, emit) * float(stride) + Term(emit.constant(tap.astype(dtype.numpy())), emit)
    at = Term(emit.op("Gather", moved, emit.index(axis), axis=2), emit) + fixed
    size = Term(emit.cast(emit.dim(x, 2 + axis), dtype), emit)
    return (at * 2.0 + 1.0) / size - 1.0


def _joined(emit: Emitter, *sizes: ir.Value) -> ir.Value:
    return emit.op("Concat", *sizes, axis=0)
