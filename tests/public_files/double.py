"""A graph of a bundle in double precision, for finite differences that neither rounding nor a kink near by spoils.

The kernels are those of ONNX's reference evaluator; those that take minutes there are torch's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool
from onnx.reference.ops.op_resize import Resize as ReferenceResize

Array = NDArray[np.generic]
Sizes = Sequence[int] | None


class DoubleGraph:
    """The outputs of a graph, whose floats are all of 64 bits."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        _widen(model.graph)
        self._names = [value.name for value in model.graph.output]
        self._inputs = {value.name for value in model.graph.input}
        self._evaluator = ReferenceEvaluator(model, new_ops=_KERNELS)

    def outputs(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs, by name. Feeds that the graph does not read are left out."""
        given = {name: _double(array) for name, array in feeds.items() if name in self._inputs}
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._evaluator.run(None, given)
        return dict(zip(self._names, found, strict=True))


def _double(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype in (np.float16, np.float32) else array


def _widen(graph: onnx.GraphProto) -> None:
    """Make all floats of a graph, and of those within it, doubles."""
    for value in graph.initializer:
        value.CopyFrom(_wide(value))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(_wide(attribute.t))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = TensorProto.DOUBLE


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def _wide(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in _FLOATS:
        return tensor
    return numpy_helper.from_array(_double(numpy_helper.to_array(tensor)), tensor.name)


class Conv(OpRun):
    """By torch."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sizes = None,
        group: int = 1,
        kernel_shape: Sizes = None,  # noqa: ARG002 -- the evaluator passes it
        pads: Sizes = None,
        strides: Sizes = None,
    ) -> tuple[Array]:
        axes = x.ndim - 2
        steps, holes = list(strides or [1] * axes), list(dilations or [1] * axes)
        widths = _padding(auto_pad, pads, x.shape[2:], w.shape[2:], steps, holes)
        padded = torch.from_numpy(np.pad(x, [(0, 0), (0, 0), *widths]))
        apply = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[axes - 1]
        bias = None if b is None else torch.from_numpy(np.ascontiguousarray(b))
        kernel = torch.from_numpy(np.ascontiguousarray(w))
        return (apply(padded, kernel, bias, tuple(steps), 0, tuple(holes), group or 1).numpy(),)


class ConvTranspose(OpRun):
    """By torch, without the padding, which is cut off afterwards."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str = "NOTSET",
        dilations: Sizes = None,
        group: int = 1,
        kernel_shape: Sizes = None,  # noqa: ARG002 -- the evaluator passes it
        output_padding: Sizes = None,
        output_shape: Sizes = None,
        pads: Sizes = None,
        strides: Sizes = None,
    ) -> tuple[Array]:
        if output_shape or auto_pad not in (None, "NOTSET"):
            raise NotImplementedError("ConvTranspose with output_shape or auto_pad")
        axes = x.ndim - 2
        steps, holes = tuple(strides or [1] * axes), tuple(dilations or [1] * axes)
        cut, more = list(pads or [0] * 2 * axes), list(output_padding or [0] * axes)
        functional = torch.nn.functional
        apply = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
        kernel = torch.from_numpy(np.ascontiguousarray(w))
        whole = apply(torch.from_numpy(x), kernel, None, steps, 0, 0, group or 1, holes).numpy()
        whole = np.pad(whole, [(0, 0), (0, 0), *((0, size) for size in more)])
        ends = [size - end for size, end in zip(whole.shape[2:], cut[axes:], strict=True)]
        result = whole[(..., *(slice(start, end) for start, end in zip(cut[:axes], ends, strict=True)))]
        return (result if b is None else result + b.reshape(-1, *[1] * axes),)


class MaxPool(ReferenceMaxPool):
    """By torch, where only values are asked for."""

    def _run(
        self,
        x: Array,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        dilations: Sizes = None,
        kernel_shape: Sizes = None,
        pads: Sizes = None,
        storage_order: int = 0,
        strides: Sizes = None,
    ) -> tuple[Array, ...]:
        if len(self.onnx_node.output) > 1 or kernel_shape is None:
            return super()._run(x, auto_pad, ceil_mode, dilations, kernel_shape, pads, storage_order, strides)
        axes = len(kernel_shape)
        steps, holes = list(strides or [1] * axes), list(dilations or [1] * axes)
        widths = _padding(auto_pad, pads, x.shape[2:], kernel_shape, steps, holes)
        padded = torch.from_numpy(np.pad(x, [(0, 0), (0, 0), *widths], constant_values=-np.inf))
        functional = torch.nn.functional
        apply = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[axes - 1]
        return (apply(padded, tuple(kernel_shape), tuple(steps), 0, tuple(holes), bool(ceil_mode)).numpy(),)


class GlobalMaxPool(OpRun):
    """The reference drops axes."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class Resize(ReferenceResize):
    """Whole factors of the nearest mode by repeats."""

    def _run(
        self, x: Array, roi: Array | None, scales: Array | None = None, sizes: Array | None = None, **given: object
    ) -> tuple[Array]:
        factors = scales if sizes is None else np.asarray(sizes) / x.shape
        plain = (given.get("coordinate_transformation_mode"), given.get("nearest_mode"))
        usual = plain in _REPEATS and given.get("axes") is None
        if given.get("mode") != "nearest" or not usual or factors is None or np.any(factors != np.rint(factors)):
            found: tuple[Array] = super()._run(x, roi, scales, sizes, **given)
            return found
        for axis, factor in enumerate(factors):
            x = np.repeat(x, int(factor), axis)
        return (x,)


_REPEATS = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))
"""Settings in which each element of a tensor is repeated by a whole factor."""


class DynamicQuantizeLinear(OpRun):
    """Without the rounding, over which a gradient goes as over the identity."""

    def _run(self, x: Array) -> tuple[Array, Array, Array]:
        low, high = min(float(np.min(x)), 0.0), max(float(np.max(x)), 0.0)
        scale = (high - low) / 255 or 1.0
        return x / scale - low / scale, np.array(scale), np.array(-low / scale)


class QuantizeLinear(OpRun):
    """Without the rounding, but within the range of the integers."""

    def _run(
        self, x: Array, scale: Array, zero_point: Array, axis: int = 1, block_size: int = 0, **_: object
    ) -> tuple[Array]:
        limits = np.iinfo(zero_point.dtype)
        around = _along(zero_point.astype(np.float64), x, axis, block_size)
        return (np.clip(x / _along(scale, x, axis, block_size) + around, limits.min, limits.max),)


class DequantizeLinear(OpRun):
    """Of integers, and of what ``QuantizeLinear`` above computes."""

    def _run(
        self, x: Array, scale: Array, zero_point: Array | None = None, axis: int = 1, block_size: int = 0, **_: object
    ) -> tuple[Array]:
        around = 0.0 if zero_point is None else _along(zero_point.astype(np.float64), x, axis, block_size)
        return ((x.astype(np.float64) - around) * _along(scale, x, axis, block_size),)


def _along(factors: Array, x: Array, axis: int, block_size: int) -> Array:
    """Factors per tensor, per element of an axis or per block of it, so that they broadcast to ``x``."""
    if factors.size == 1:
        return factors.reshape(())
    if block_size:
        return np.repeat(factors, block_size, axis).take(range(x.shape[axis]), axis)
    return factors.reshape([-1 if index == axis % x.ndim else 1 for index in range(x.ndim)])


class MatMulIntegerToFloat(OpRun):
    """Of ONNX Runtime, on numbers that need not be whole."""

    op_domain = "com.microsoft"

    def _run(
        self,
        a: Array,
        b: Array,
        a_scale: Array,
        b_scale: Array,
        a_zero_point: Array | None = None,
        b_zero_point: Array | None = None,
        bias: Array | None = None,
    ) -> tuple[Array]:
        left, right = (
            array.astype(np.float64) - (0.0 if zero is None else zero.astype(np.float64))
            for array, zero in ((a, a_zero_point), (b, b_zero_point))
        )
        product = left @ right * a_scale * b_scale
        return (product if bias is None else product + bias,)


def _padding(
    auto_pad: str | None,
    pads: Sizes,
    sizes: Sequence[int],
    kernel: Sequence[int],
    steps: Sequence[int],
    holes: Sequence[int],
) -> list[tuple[int, int]]:
    """The width of the padding before and after each axis."""
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        given = list(pads or [0] * 2 * len(kernel))
        return list(zip(given[: len(kernel)], given[len(kernel) :], strict=True))
    widths = []
    for size, width, step, hole in zip(sizes, kernel, steps, holes, strict=True):
        total = max((-(-size // step) - 1) * step + (width - 1) * hole + 1 - size, 0)
        half = total // 2
        widths.append((half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half))
    return widths


_KERNELS = [
    Conv,
    ConvTranspose,
    DequantizeLinear,
    DynamicQuantizeLinear,
    GlobalMaxPool,
    MatMulIntegerToFloat,
    MaxPool,
    QuantizeLinear,
    Resize,
]
