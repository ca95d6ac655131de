"""Convolutions of one to three dimensions, with groups, strides, dilations and padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.reading import attribute_ints
from edgepeft_export.autodiff.rules.window import Window, spread_back, transposed_window, window_of
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands, present
from edgepeft_export.graph.shapes import Dim, dims_of, rank


@rule("Conv")
def conv(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    x, weight = operands(node, 2)
    group = int(node.attributes.get_int("group", 1))
    window = window_of(node, x, _kernel(node, weight))
    dx = spread_back(dy, weight, window, x, node.outputs[0], group, emit)
    dweight = _weight_gradient(x, dims_of(x), dy, dims_of(weight)[0], window, group, emit)
    return dx, dweight, _bias_gradient(node, dy, emit)


@rule("ConvTranspose")
def conv_transpose(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """The transpose of a convolution from y to x: its gradients are that convolution and its weight gradient."""
    x, weight = operands(node, 2)
    group = int(node.attributes.get_int("group", 1))
    window = transposed_window(node, x, _kernel(node, weight))
    dx = emit.op("Conv", dy, weight, pads=window.pads, strides=window.strides, dilations=window.dilations, group=group)
    dweight = _weight_gradient(dy, dims_of(node.outputs[0]), x, dims_of(weight)[0], window, group, emit)
    return dx, dweight, _bias_gradient(node, dy, emit)


def _kernel(node: ir.Node, weight: ir.Value) -> list[int]:
    sizes = [size for size in dims_of(weight)[2:] if isinstance(size, int)]
    kernel = attribute_ints(node, "kernel_shape", sizes)
    if len(kernel) != rank(weight) - 2:
        raise NoGradientForCase(node, "the size of its kernel is not known", "declare the shape of its weight")
    return kernel


def _bias_gradient(node: ir.Node, dy: ir.Value, emit: Emitter) -> ir.Value | None:
    if present(node, 2) is None:
        return None
    return emit.op("ReduceSum", dy, emit.ints(0, *range(2, rank(node.outputs[0]))), keepdims=0)


def _weight_gradient(
    x: ir.Value, dims: Sequence[Dim], dy: ir.Value, made: Dim, window: Window, group: int, emit: Emitter
) -> ir.Value:
    """The gradient for the weight of the convolution ``x`` → y: correlate ``x`` with ``dy``.

    With channels and batch exchanged this is itself a convolution, with ``dy`` for kernel and dilations for strides.
    ``dims`` are the sizes of ``x``, and ``made`` is the number of channels of y.
    """
    if group == 1 and window.reach == (1,) * len(window.kernel) and not any(window.pads):
        return _pointwise_weight_gradient(x, dy, window, emit)
    channels = dims[1]
    if group == 1 and isinstance(channels, int) and isinstance(made, int) and _is_narrow(channels, made, window):
        return _narrow_weight_gradient(x, channels, dy, made, window, emit)
    spatial = list(window.axes)
    images = _images(x, dims, group, emit)
    kernels = emit.op("Transpose", dy, perm=[1, 0, *spatial])
    kernel = emit.op(
        "Conv", images, kernels, pads=window.pads, strides=window.dilations, dilations=window.strides, group=group
    )
    if any(stride > 1 for stride in window.strides):
        # Elements of x that no window reached make it a little larger than the kernel.
        kernel = emit.op(
            "Slice", kernel, emit.ints(*[0] * len(spatial)), emit.ints(*window.kernel), emit.ints(*spatial)
        )
    return emit.op("Transpose", kernel, perm=[1, 0, *spatial])


def _is_narrow(channels: int, made: int, window: Window) -> bool:
    """Whether y has so few channels that copies of its gradient for all taps are no larger than a few of x."""
    fits = all(pad < reach for pad, reach in zip(window.pads, window.reach * 2, strict=True))
    slides = fits and all(stride == 1 for stride in window.strides)
    return slides and made * prod(window.kernel) <= 4 * channels


def _narrow_weight_gradient(
    x: ir.Value, channels: int, dy: ir.Value, made: int, window: Window, emit: Emitter
) -> ir.Value:
    """A matrix product of ``x`` with ``dy`` moved by each tap, for a convolution to few channels, as LoRA's A.

    As a convolution its kernel is as large as an image, and ONNX Runtime copies x once per tap for it.
    """
    axes, reach = window.axes, window.reach
    pads = [size - 1 - pad for size, pad in zip(reach * 2, window.pads, strict=True)]
    count = len(axes)
    padded = emit.op("Pad", dy, emit.ints(0, 0, *pads[:count], 0, 0, *pads[count:]))
    moved = []
    for tap in product(*(range(size) for size in window.kernel)):
        starts = [size - 1 - index * step for size, index, step in zip(reach, tap, window.dilations, strict=True)]
        ends = [start - size + 1 or 2**31 - 1 for start, size in zip(starts, reach, strict=True)]
        moved.append(emit.op("Slice", padded, emit.ints(*starts), emit.ints(*ends), emit.ints(*axes)))
    taps = emit.op("Concat", *moved, axis=1)
    flat_taps, flat_x = (emit.op("Reshape", value, emit.ints(0, 0, -1)) for value in (taps, x))
    per_image = emit.op("MatMul", flat_taps, emit.op("Transpose", flat_x, perm=[0, 2, 1]))
    summed = emit.op("ReduceSum", per_image, emit.ints(0), keepdims=0)
    apart = emit.op("Reshape", summed, emit.ints(*window.kernel, made, channels))
    return emit.op("Transpose", apart, perm=[count, count + 1, *range(count)])


def _images(x: ir.Value, dims: Sequence[Dim], group: int, emit: Emitter) -> ir.Value:
    """[N, C, …] as [C / G, G N, …]: the channels of a group as a batch, the groups side by side."""
    spatial = range(2, len(dims))
    if group == 1 or dims[1] == group:
        swapped = emit.op("Transpose", x, perm=[1, 0, *spatial])
        return swapped if group == 1 else emit.op("Reshape", swapped, emit.ints(1, -1, *[0] * len(spatial)))
    sizes = [emit.op("Shape", x, start=axis, end=axis + 1) for axis in spatial]
    apart = emit.op("Concat", emit.ints(0, group, -1), *sizes, axis=0)
    by_group = emit.op("Transpose", emit.op("Reshape", x, apart), perm=[2, 1, 0, *[axis + 1 for axis in spatial]])
    return emit.op("Reshape", by_group, emit.op("Concat", emit.ints(0, -1), *sizes, axis=0))


def _pointwise_weight_gradient(x: ir.Value, dy: ir.Value, window: Window, emit: Emitter) -> ir.Value:
    """A convolution with one tap is a matrix product over channels."""
    spatial = window.axes
    if any(stride > 1 for stride in window.strides):
        start, stop = emit.ints(*[0] * len(spatial)), emit.ints(*[2**31 - 1] * len(spatial))
        x = emit.op("Slice", x, start, stop, emit.ints(*spatial), emit.ints(*window.strides))
    flat_dy, flat_x = (emit.op("Reshape", value, emit.ints(0, 0, -1)) for value in (dy, x))
    per_image = emit.op("MatMul", flat_dy, emit.op("Transpose", flat_x, perm=[0, 2, 1]))
    summed = emit.op("ReduceSum", per_image, emit.ints(0), keepdims=0)
    return emit.op("Unsqueeze", summed, emit.ints(*spatial))
