"""Regions of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.definitions.algebra import Term
from edgepeft_export.graph.definitions.registry import NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dtype_of


@definition("RoiAlign")
def roi_align(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """The mean of bilinear samples in each bin of a region (He et al., ICCV 2017).

    The weights of an image's pixels are a product of those of its rows and of its columns, so with Y [regions, bins,
    height] and X [regions, bins, width] the result is Y image Xᵀ. The gradient reaches the regions too.
    """
    x, regions, images = given
    assert x is not None and regions is not None and images is not None
    if node.attributes.get_string("mode", "avg") != "avg":
        raise NotDefined("it keeps the largest sample of a bin", "use mode avg")
    read = emit.op("Gather", x, images, axis=0)
    rows, columns = (_weights(node, x, regions, axis, emit) for axis in (0, 1))
    return (emit.op("MatMul", emit.op("MatMul", rows, read), emit.op("Transpose", columns, perm=[0, 1, 3, 2])),)


def _weights(node: ir.Node, x: ir.Value, regions: ir.Value, axis: int, emit: Emitter) -> ir.Value:
    """How much a row of pixels (or a column) counts in each bin, [regions, 1, bins, pixels]."""
    half = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    bins = node.attributes.get_int(("output_height", "output_width")[axis], 1)
    samples = node.attributes.get_int("sampling_ratio", 0)
    scale, moved = node.attributes.get_float("spatial_scale", 1.0), 0.5 if half else 0.0

    def corner(index: int) -> Term:
        picked = emit.op("Gather", regions, emit.ints(index), axis=1)  # [regions, 1]
        return Term(emit.op("Unsqueeze", picked, emit.ints(2)), emit) * scale - moved

    start, end = corner(1 - axis), corner(3 - axis)
    length = end - start if half else (end - start).at_least(1.0)
    bin_length = length / float(bins)
    count = Term(emit.scalar(float(samples), like=regions), emit) if samples else bin_length.apply("Ceil")
    most = emit.op("Cast", emit.op("ReduceMax", count.value, keepdims=0), to=ir.DataType.INT64.value)
    numbers = emit.op("Range", emit.index(0), most, emit.index(1))
    at = Term(emit.cast(numbers, dtype_of(regions)), emit)
    first = Term(emit.constant(np.arange(bins, dtype=dtype_of(regions).numpy()).reshape(1, bins, 1)), emit)
    points = start + bin_length * (first + (at + 0.5) / count)  # [regions, bins, samples]
    size = Term(emit.cast(emit.dim(x, 2 + axis), dtype_of(regions)), emit)
    inside = points.is_at_least(-1.0) * (size - points).is_at_least(0.0) * (count - at - 0.5).is_at_least(0.0)
    nearest = points.at_least(0.0).at_most(size - 1.0).apply("Unsqueeze", emit.ints(-1))
    last = emit.op("Squeeze", emit.dim(x, 2 + axis), emit.ints(0))
    pixels = Term(emit.cast(emit.op("Range", emit.index(0), last, emit.index(1)), dtype_of(regions)), emit)
    hat = (abs(nearest - pixels) * -1.0 + 1.0).at_least(0.0)
    weighed = hat * (inside / count.at_least(1.0)).apply("Unsqueeze", emit.ints(-1))
    summed = emit.op("ReduceSum", weighed.value, emit.ints(2), keepdims=0)
    return emit.op("Unsqueeze", summed, emit.ints(1))
