"""Windows of convolutions and pooling: how they slide over the spatial axes, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import NoGradientForCase
from edgepeft_export.autodiff.rules.reading import attribute_ints
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of, static_dims


@dataclass(frozen=True)
class Window:
    """A sliding window over n spatial axes.

    Attributes:
        kernel, strides, dilations: one number per spatial axis.
        before, after: padding per spatial axis.
        axes: the spatial axes of the tensor, from 2 on.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def axes(self) -> range:
        return range(2, 2 + len(self.kernel))

    @property
    def pads(self) -> list[int]:
        """As ONNX writes them: all befores, then all afters."""
        return [*self.before, *self.after]

    @property
    def reach(self) -> tuple[int, ...]:
        """The number of elements that a window spans, with its dilation."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))


def window_of(node: ir.Node, x: ir.Value, kernel: Sequence[int]) -> Window:
    """The window of a node that slides over ``x``; raises where ``auto_pad`` leaves the padding to the run."""
    ones = [1] * len(kernel)
    strides, dilations = (attribute_ints(node, name, ones) for name in ("strides", "dilations"))
    pads = attribute_ints(node, "pads", [0] * 2 * len(kernel))
    window = Window(
        tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[: len(kernel)]), tuple(pads[len(kernel) :])
    )
    mode = str(node.attributes.get_string("auto_pad", "NOTSET"))
    return _same(node, window, dims_of(x)[2:], mode) if mode.startswith("SAME") else window


def _same(node: ir.Node, window: Window, sizes: Sequence[Dim], mode: str) -> Window:
    """The window with the padding that yields ⌈size / stride⌉ positions."""
    before, after = [], []
    for size, stride, reach in zip(sizes, window.strides, window.reach, strict=True):
        if stride != 1 and not isinstance(size, int):
            raise NoGradientForCase(
                node,
                f"auto_pad {mode} with a stride pads by a size that only the run knows",
                "export it with explicit pads",
            )
        left_over = (size - 1) % stride + 1 if isinstance(size, int) else 1
        total = max(reach - left_over, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return Window(window.kernel, window.strides, window.dilations, tuple(before), tuple(after))


def transposed_window(node: ir.Node, x: ir.Value, kernel: Sequence[int]) -> Window:
    """The window of a transposed convolution, whose padding may follow from the size of its output.

    ``output_shape`` or SAME, the input's size times the stride, say which; what is to be cut off is divided among both
    ends, and an odd element goes to the end with SAME_UPPER, else to the start.
    """
    mode = str(node.attributes.get_string("auto_pad", "NOTSET"))
    wanted = attribute_ints(node, "output_shape", [])
    if not wanted and not mode.startswith("SAME"):
        return window_of(node, x, kernel)
    ones = [1] * len(kernel)
    strides, dilations = (attribute_ints(node, name, ones) for name in ("strides", "dilations"))
    window = Window(tuple(kernel), tuple(strides), tuple(dilations), tuple([0] * len(kernel)), tuple([0] * len(kernel)))
    added = attribute_ints(node, "output_padding", [0] * len(kernel))
    before, after = [], []
    for axis, (stride, reach) in enumerate(zip(window.strides, window.reach, strict=True)):
        cut = reach + added[axis] - stride
        if wanted:
            size = dims_of(x)[2 + axis]
            if not isinstance(size, int):
                raise NoGradientForCase(node, "its padding follows from sizes that only the run knows", "declare them")
            cut += size * stride - wanted[len(wanted) - len(kernel) + axis]
        if cut <= -stride:
            raise NoGradientForCase(node, "its output is larger than what it computes", "export it with explicit pads")
        cut = max(cut, 0)  # the elements that no window writes are at the end
        small, large = cut // 2, cut - cut // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return replace(window, before=tuple(before), after=tuple(after))


def spread_back(
    dy: ir.Value, weight: ir.Value, window: Window, x: ir.Value, y: ir.Value, group: int, emit: Emitter
) -> ir.Value:
    """The gradient of a convolution for its input ``x``, given that for its output ``y``."""
    if _slides_back(window):
        transposed = _flipped(weight, window, group, emit)
        if transposed is not None:
            pads = [reach - 1 - pad for reach, pad in zip(window.reach * 2, window.pads, strict=True)]
            return emit.op("Conv", dy, transposed, pads=pads, dilations=window.dilations, group=group)
    spread = _slid_over_zeros(dy, weight, window, x, y, group, emit)
    return spread if spread is not None else _transposed(dy, weight, window, x, y, group, emit)


def _slides_back(window: Window) -> bool:
    """Whether the gradient is a convolution itself. ONNX Runtime runs it several times faster than a transposed one."""
    fits = all(pad < reach for pad, reach in zip(window.pads, window.reach * 2, strict=True))
    return fits and all(stride == 1 for stride in window.strides)


def _slid_over_zeros(
    dy: ir.Value, weight: ir.Value, window: Window, x: ir.Value, y: ir.Value, group: int, emit: Emitter
) -> ir.Value | None:
    """A convolution over ``dy`` with strides - 1 zeros after each element, or ``None``.

    For depthwise convolutions of images whose size is known: their transposed convolution runs channel by channel, and
    takes 1.2 to 4 times as long. The zeros come from enlarging and masking, because ``Pad`` uses one thread. A dense
    convolution would multiply the zeros, and is faster transposed.
    """
    dims, inputs, outputs = dims_of(weight), dims_of(x)[2:], dims_of(y)[2:]
    sizes = [size for size in (*inputs, *outputs) if isinstance(size, int)]
    if group == 1 or dims[:2] != [group, 1] or len(window.strides) != 2 or len(sizes) != 4 or max(window.strides) == 1:
        return None
    have, made = sizes[:2], sizes[2:]
    large = [size * stride for size, stride in zip(made, window.strides, strict=True)]
    before = [reach - 1 - pad for reach, pad in zip(window.reach, window.before, strict=True)]
    after = [
        size + reach - 1 - wide - pad for size, reach, wide, pad in zip(have, window.reach, large, before, strict=True)
    ]
    flipped = _flipped(weight, window, group, emit)
    if min(*before, *after) < 0 or flipped is None or dy.dtype != ir.DataType.FLOAT:
        return None
    zeros = emit.op("Mul", enlarged(dy, window.strides, emit), _firsts(large, window.strides, emit))
    return emit.op("Conv", zeros, flipped, pads=[*before, *after], dilations=window.dilations, group=group)


def _firsts(sizes: Sequence[int], strides: Sequence[int], emit: Emitter) -> ir.Value:
    """1 at the first element of each stride of an image, else 0.

    A product of two vectors, which ONNX Runtime computes when it loads the graph: the file stays small.
    """
    axes = [(np.arange(size) % stride == 0).astype(np.float32) for size, stride in zip(sizes, strides, strict=True)]
    rows, columns = axes[0].reshape(1, 1, -1, 1), axes[1].reshape(1, 1, 1, -1)
    return emit.op("Mul", emit.constant(rows), emit.constant(columns))


def enlarged(value: ir.Value, strides: Sequence[int], emit: Emitter) -> ir.Value:
    """Each element of an image repeated ``strides`` times along its axes."""
    scales = emit.constant(np.asarray([1, 1, *strides], np.float32))
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return emit.op("Resize", value, None, scales, **options)


def _flipped(weight: ir.Value, window: Window, group: int, emit: Emitter) -> ir.Value | None:
    """The kernel from output to input channels, mirrored. ONNX Runtime folds that of a frozen kernel when it loads.

    A quantized kernel is transposed as integers. ``None`` where its scales would not lie along one axis then.
    """
    dequantize = weight.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        exchanged = _exchanged(weight, group, emit)
        return None if exchanged is None else _mirrored(exchanged, window, emit)
    quantized = dequantize.inputs[0]
    exchanged = None if quantized is None else _exchanged(quantized, group, emit)
    depthwise = exchanged is quantized
    if exchanged is None or not (group == 1 or depthwise) or int(dequantize.attributes.get_int("axis", 1)) != 0:
        return None
    axis = 0 if depthwise else 1
    return emit.op("DequantizeLinear", _mirrored(exchanged, window, emit), *dequantize.inputs[1:], axis=axis)


def _exchanged(weight: ir.Value, group: int, emit: Emitter) -> ir.Value | None:
    """[M, C / G, …] as [C, M / G, …]; ``None`` with several groups of unknown size."""
    dims = dims_of(weight)
    spatial = range(2, len(dims))
    if group == 1:
        return emit.op("Transpose", weight, perm=[1, 0, *spatial])
    sizes = static_dims(weight)
    if sizes is None:
        return None
    made, taken, *kernel = sizes
    if taken == 1 and made == group:
        return weight
    apart = emit.op("Reshape", weight, emit.ints(group, made // group, taken, *kernel))
    by_input = emit.op("Transpose", apart, perm=[0, 2, 1, *[axis + 1 for axis in spatial]])
    return emit.op("Reshape", by_input, emit.ints(group * taken, made // group, *kernel))


def _mirrored(weight: ir.Value, window: Window, emit: Emitter) -> ir.Value:
    axes = [axis for axis, size in zip(window.axes, window.kernel, strict=True) if size > 1]
    if not axes:
        return weight
    first, last = [-1] * len(axes), [-(2**31)] * len(axes)
    return emit.op("Slice", weight, *(emit.ints(*numbers) for numbers in (first, last, axes, [-1] * len(axes))))


def _transposed(
    dy: ir.Value, weight: ir.Value, window: Window, x: ir.Value, y: ir.Value, group: int, emit: Emitter
) -> ir.Value:
    """A transposed convolution.

    Several input sizes have the same output size. ``output_padding`` selects one where the sizes are known (or the
    stride is 1). Otherwise the largest result is computed and cut to the size of ``x``.
    """
    left_over = _left_over(window, dims_of(x)[2:], dims_of(y)[2:])
    whole = emit.op(
        "ConvTranspose",
        dy,
        weight,
        pads=window.pads if left_over is not None else [*window.before, *[0] * len(window.kernel)],
        output_padding=left_over if left_over is not None else [stride - 1 for stride in window.strides],
        strides=window.strides,
        dilations=window.dilations,
        group=group,
    )
    if left_over is not None:
        return whole
    starts = emit.ints(*[0] * len(window.kernel))
    ends = emit.op("Concat", *[emit.dim(x, axis) for axis in window.axes], axis=0)
    return emit.op("Slice", whole, starts, ends, emit.ints(*window.axes))


def _left_over(window: Window, inputs: Sequence[Dim], outputs: Sequence[Dim]) -> list[int] | None:
    """The number of elements at the end of each axis that no window reaches; ``None`` where unknown or negative."""
    left_over = []
    for axis, (have, made) in enumerate(zip(inputs, outputs, strict=True)):
        if isinstance(have, int) and isinstance(made, int):
            padding = window.before[axis] + window.after[axis]
            left_over.append(have + padding - (made - 1) * window.strides[axis] - window.reach[axis])
        elif window.strides[axis] == 1:
            left_over.append(0)
        else:
            return None
    return left_over if min(left_over) >= 0 else None
