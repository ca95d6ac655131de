"""Pooling."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from math import prod

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.reading import (
    attribute_ints,
    reciprocal,
    reshaped_like,
    static_size,
    zeros_like,
)
from edgepeft_export.autodiff.rules.window import Window, enlarged, spread_back, window_of
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import dims_of, dtype_of, rank


@rule("MaxPool")
def max_pool(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Add each gradient at its maximum. The forward node's second output has its index in the flattened tensor.

    Where windows lie side by side, masks find the maxima instead: with indices, ONNX Runtime pools 8 times slower.
    """
    x = operand(node)
    _refuse_disputed_sizes(node, x)
    # Indices need no padding, which SAME leaves to the run.
    if not str(node.attributes.get_string("auto_pad", "NOTSET")).startswith("SAME"):
        window = window_of(node, x, node.attributes["kernel_shape"].as_ints())
        if _tiles(window, x, node.outputs[0]):
            return (_at_first_maxima(x, node.outputs[0], dy, window, emit),)
    flat = emit.ints(-1)
    positions, values = (emit.op("Reshape", value, flat) for value in (_indices(node, emit), dy))
    zeros = emit.op("Reshape", zeros_like(x, emit), flat)
    added = emit.op("ScatterElements", zeros, positions, values, axis=0, reduction="add")
    return (emit.op("Reshape", added, emit.shape_of(x), allowzero=1),)


def _indices(node: ir.Node, emit: Emitter) -> ir.Value:
    """Where each maximum is in the flattened tensor, by rows. A node that counts by columns does not say."""
    if node.attributes.get_int("storage_order", 0):
        window = {name: given.value for name, given in node.attributes.items() if name != "storage_order"}
        indices = emit.ops("MaxPool", operand(node), outputs=2, domain="", **window)[1]
    else:
        if len(node.outputs) < 2:
            node.resize_outputs(2)
            node.outputs[1].name = f"{node.outputs[0].name}.indices"
        indices = node.outputs[1]
    indices.dtype = ir.DataType.INT64
    return indices


def _at_first_maxima(x: ir.Value, y: ir.Value, dy: ir.Value, window: Window, emit: Emitter) -> ir.Value:
    """Each gradient at the first of the equal maxima of its window, as in PyTorch.

    Elements of a window have different ranks, and the largest rank among the maxima is the first one's.
    """

    def equal(image: ir.Value, pooled: ir.Value) -> ir.Value:
        return emit.cast(emit.op("Equal", image, enlarged(pooled, window.strides, emit)), ir.DataType.FLOAT)

    ranks = emit.op("Mul", equal(x, y), _ranks(x, window, emit))
    first = emit.op("MaxPool", ranks, kernel_shape=window.kernel, strides=window.strides)
    return emit.op("Mul", equal(ranks, first), enlarged(dy, window.strides, emit))


def _ranks(x: ir.Value, window: Window, emit: Emitter) -> ir.Value:
    """Positive numbers that fall within each window; a sum of two vectors, which is computed when the graph loads."""
    sizes = [size for size in dims_of(x)[2:] if isinstance(size, int)]
    offsets = [np.arange(size, dtype=np.float32) % step for size, step in zip(sizes, window.kernel, strict=True)]
    height, width = window.kernel
    falling = (height * width - width * offsets[0]).reshape(1, 1, -1, 1)
    return emit.op("Sub", emit.constant(falling), emit.constant(offsets[1].reshape(1, 1, 1, -1)))


@rule("AveragePool")
def average_pool(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Spread each gradient evenly over its window, by a transposed convolution of every channel with ones."""
    x, y = operand(node), node.outputs[0]
    _refuse_disputed_sizes(node, x)
    window = window_of(node, x, node.attributes["kernel_shape"].as_ints())
    whole_windows = node.attributes.get_int("count_include_pad", 0) or not any(window.pads)
    if node.attributes.get_int("ceil_mode", 0):
        window = _ceiled(node, window, x, y, bool(node.attributes.get_int("count_include_pad", 0)))
        whole_windows = not any(window.pads)
    tap = 1 / prod(window.kernel) if whole_windows else 1.0
    if whole_windows and _tiles(window, x, y):
        return (enlarged(emit.op("Mul", dy, emit.scalar(tap, like=x)), window.strides, emit),)
    weight = emit.constant(np.full((1, 1, *window.kernel), tap, dtype=dtype_of(x).numpy()))
    if not whole_windows:
        dy = emit.op("Div", dy, _counts(x, weight, window, emit))
    elif not any(window.pads) and window.reach == window.kernel:
        dy = _of_cut_windows(dy, x, window, emit)
    return (_per_channel(dy, weight, window, x, y, emit),)


def _tiles(window: Window, x: ir.Value, y: ir.Value) -> bool:
    """Whether the windows of an image lie side by side and cover all of it."""
    sizes = [size for size in (*dims_of(x)[2:], *dims_of(y)[2:]) if isinstance(size, int)]
    if len(sizes) != 4 or x.dtype != ir.DataType.FLOAT or window.kernel != window.strides or any(window.pads):
        return False
    return sizes[:2] == [made * step for made, step in zip(sizes[2:], window.strides, strict=True)]


def _of_cut_windows(dy: ir.Value, x: ir.Value, window: Window, emit: Emitter) -> ir.Value:
    """A window that is larger than an image of free size has the image's elements, and divides by their number."""
    factors = []
    for axis, size in zip(window.axes, window.kernel, strict=True):
        if size > 1 and not isinstance(dims_of(x)[axis], int):
            there = emit.cast(emit.op("Min", emit.dim(x, axis), emit.ints(size)), dtype_of(x))
            factors.append(emit.op("Div", emit.scalar(float(size), like=x), there))
    return emit.op("Mul", dy, reduce(lambda a, b: emit.op("Mul", a, b), factors)) if factors else dy


def _refuse_disputed_sizes(node: ir.Node, x: ir.Value) -> None:
    """Refuse a window for which ONNX's shape inference and ONNX Runtime disagree on the output's size."""
    same = str(node.attributes.get_string("auto_pad", "NOTSET")).startswith("SAME")
    if same and any(step > 1 for step in attribute_ints(node, "dilations", [])):
        raise NoGradientForCase(
            node, "ONNX and ONNX Runtime pad dilated windows differently with auto_pad", "export it with explicit pads"
        )
    if same:
        return
    window = window_of(node, x, node.attributes["kernel_shape"].as_ints())
    for axis, size in enumerate(dims_of(x)[2:]):
        if isinstance(size, int) and _is_disputed(window, axis, size, bool(node.attributes.get_int("ceil_mode", 0))):
            raise NoGradientForCase(
                node,
                "a window is larger than the input, or the last one lies in the padding (ceil_mode)",
                "leave ceil_mode at 0, and the window within the input",
            )


def _is_disputed(window: Window, axis: int, size: int, ceiled: bool) -> bool:
    """Whether a window does not fit, or the last one of ``ceil_mode`` has no element of the input."""
    stride, before = window.strides[axis], window.before[axis]
    left = size + before + window.after[axis] - window.reach[axis]
    return left < 0 or (ceiled and -(-left // stride) * stride >= size + before)


def _ceiled(node: ir.Node, window: Window, x: ir.Value, y: ir.Value, counts_padding: bool) -> Window:
    """The window with the padding that its last, overhanging position needs."""
    if counts_padding:
        raise NoGradientForCase(
            node,
            "releases of ONNX Runtime divide a window that hangs over the edge by different numbers (ceil_mode with "
            "count_include_pad)",
            "export it with one of the two",
        )
    after = []
    for axis, (size, made) in enumerate(zip(dims_of(x)[2:], dims_of(y)[2:], strict=True)):
        if not (isinstance(size, int) and isinstance(made, int)):
            raise NoGradientForCase(node, "ceil_mode needs spatial sizes that are known", "declare them")
        over = (made - 1) * window.strides[axis] + window.reach[axis] - size - window.before[axis]
        after.append(max(over, window.after[axis]))
    return replace(window, after=tuple(after))


def _counts(x: ir.Value, ones: ir.Value, window: Window, emit: Emitter) -> ir.Value:
    """The number of elements that each window position covers, without padding."""
    sizes = [emit.dim(x, axis) for axis in window.axes]
    shape = emit.op("Concat", emit.ints(1, 1), *sizes, axis=0)
    image = emit.op("Expand", emit.scalar(1.0, like=x), shape)
    return emit.op("Conv", image, ones, pads=window.pads, strides=window.strides, dilations=window.dilations)


def _per_channel(dy: ir.Value, weight: ir.Value, window: Window, x: ir.Value, y: ir.Value, emit: Emitter) -> ir.Value:
    """Treat every channel as an image of its own, so that the number of channels need not be known."""
    sizes = [emit.dim(y, axis) for axis in window.axes]
    images = emit.op("Reshape", dy, emit.op("Concat", emit.ints(-1, 1), *sizes, axis=0))
    spread = spread_back(images, weight, window, x, y, 1, emit)
    return reshaped_like(spread, None, x, emit)


@rule("GlobalAveragePool")
def global_average_pool(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    x = operand(node)
    area = static_size(dims_of(x)[2:])
    if area is not None:
        fraction = emit.scalar(1 / area, like=x)
    else:
        sizes = emit.op("Concat", *[emit.dim(x, axis) for axis in range(2, rank(x))], axis=0)
        fraction = reciprocal(emit.op("ReduceProd", sizes, keepdims=0), x, emit)
    return (emit.op("Expand", emit.op("Mul", dy, fraction), emit.shape_of(x)),)


@rule("GlobalMaxPool")
def global_max_pool(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Elements that tie for the maximum split the gradient evenly."""
    x = operand(node)
    attains = emit.cast(emit.op("Equal", x, node.outputs[0]), dtype_of(x))
    count = emit.op("ReduceSum", attains, emit.ints(*range(2, rank(x))), keepdims=1)
    return (emit.op("Mul", attains, emit.op("Div", dy, count)),)
