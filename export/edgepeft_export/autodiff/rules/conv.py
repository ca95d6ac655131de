"""Convolutions of one to three dimensions, with groups, strides, dilations and padding."""

from __future__ import annotations

from collections.abc import Sequence

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
    dweight = _weight_gradient(x, dims_of(x), dy, window, group, emit)
    return dx, dweight, _bias_gradient(node, dy, emit)


@rule("ConvTranspose")
def conv_transpose(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """The transpose of a convolution from y to x: its gradients are that convolution and its weight gradient."""
    x, weight = operands(node, 2)
    group = int(node.attributes.get_int("group", 1))
    window = transposed_window(node, x, _kernel(node, weight))
    dx = emit.op("Conv", dy, weight, pads=window.pads, strides=window.strides, dilations=window.dilations, group=group)
    dweight = _weight_gradient(dy, dims_of(node.outputs[0]), x, window, group, emit)
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
    x: ir.Value, dims: Sequence[Dim], dy: ir.Value, window: Window, group: int, emit: Emitter
) -> ir.Value:
    """The gradient for the weight of the convolution ``x`` → y: correlate ``x``, whose sizes are ``dims``, with ``dy``.

    With channels and batch exchanged this is itself a convolution, with ``dy`` for kernel and dilations for strides.
    """
    if group == 1 and window.reach == (1,) * len(window.kernel) and not any(window.pads):
        return _pointwise_weight_gradient(x, dy, window, emit)
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
