"""Products with a constant matrix, as exporters write them: how to recognise one and what it multiplies by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_WINDOW = {"auto_pad": "NOTSET", "dilations": 1, "group": 1, "pads": 0, "strides": 1}
"""Attributes of a convolution beside the kernel's shape, and what they are where they are missing."""


@dataclass(frozen=True)
class Product:
    """A ``MatMul``, ``Gemm`` or ``Conv`` whose second input is an initializer."""

    node: ir.Node
    weight: ir.Value

    @property
    def source(self) -> ir.Value:
        """What is multiplied."""
        source = self.node.inputs[0]
        assert source is not None  # products take two inputs
        return source

    @property
    def is_conv(self) -> bool:
        """Whether the matrix is a kernel."""
        return self.node.op_type == "Conv"

    @property
    def has_bias(self) -> bool:
        """Whether the node adds something too."""
        return len(self.node.inputs) > 2 and self.node.inputs[2] is not None

    def matrix(self) -> NDArray[np.float64]:
        """The factor: ``[in, out]``, or ``[out, in, *kernel]`` of a convolution."""
        assert self.weight.const_value is not None
        array = self.weight.const_value.numpy().astype(np.float64)
        if self.node.op_type != "Gemm":
            return array
        return _alpha(self.node) * (array.T if attribute(self.node, "transB", 0) else array)

    def stored(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight that gives the factor ``matrix``: the inverse of :meth:`matrix`."""
        if self.node.op_type != "Gemm":
            return matrix
        return (matrix.T if attribute(self.node, "transB", 0) else matrix) / _alpha(self.node)


def product(value: ir.Value) -> Product | None:
    """The product that gives ``value``, ``None`` where something else does."""
    node = value.producer()
    if node is None or node.op_type not in ("MatMul", "Gemm", "Conv") or node.domain:
        return None
    source, weight = node.inputs[:2]
    if source is None or weight is None or weight.const_value is None or weight.is_graph_input():
        return None
    rank = len(weight.const_value.shape)
    if (rank < 3) if node.op_type == "Conv" else (rank != 2):
        return None
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or _alpha(node) == 0.0):
        return None
    return Product(node, weight)


def base_product(value: ir.Value, read: Callable[[ir.Value], Product | None] = product) -> Product | None:
    """The product behind ``value``: perhaps with a constant bias, perhaps reshaped; nothing else may read it."""
    while value.producer() is not None and len(value.uses()) == 1 and not value.is_graph_output():
        found = read(value)
        if found is not None:
            return found
        before = _without_bias(value) or _reshaped(value)
        if before is None:
            return None
        value = before
    return None


def unscaled(value: ir.Value) -> tuple[float, ir.Value]:
    """``(s, x)`` of ``value = s x`` with constant numbers; ``(1, value)`` where there are none."""
    scale = 1.0
    while (found := _scaled(value)) is not None:
        scale, value = scale * found[0], found[1]
    return scale, value


def _scaled(value: ir.Value) -> tuple[float, ir.Value] | None:
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Div"):
        return None
    left, right = node.inputs
    for factor, other in ((right, left), (left, right)):
        tensor = None if factor is None else factor.const_value
        if tensor is None or other is None or tensor.size != 1 or len(tensor.shape) > 1:
            continue
        number = float(tensor.numpy().reshape(-1)[0])
        if node.op_type == "Mul":
            return number, other
        if factor is right and number != 0.0:
            return 1.0 / number, other
    return None


def flattens(flat: ir.Value, source: ir.Value) -> bool:
    """Whether ``flat`` is ``source`` with its leading axes made one: the same rows in the same order."""
    node = flat.producer()
    if node is None or node.op_type not in ("Reshape", "Flatten") or node.inputs[0] is not source:
        return False
    return _width(flat) is not None and _width(flat) == _width(source)


def same_window(one: ir.Node, other: ir.Node) -> bool:
    """Whether two convolutions, of one group each, look at the same places."""
    settings = [_window(node) for node in (one, other)]
    return settings[0] == settings[1] and settings[0]["group"] == 1


def pointwise(node: ir.Node) -> bool:
    """Whether a convolution is a product per position: a kernel of one element, no stride, no padding, one group."""
    tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
    assert tensor is not None  # product() has seen to it
    kernel = tensor.shape[2:]
    plain = {name: default for name, default in _WINDOW.items() if name != "dilations"}
    return all(size == 1 for size in kernel) and {name: _window(node)[name] for name in plain} == plain


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, ``default`` where it is missing."""
    return node.attributes[name].value if name in node.attributes else default


def _alpha(node: ir.Node) -> float:
    return float(attribute(node, "alpha", 1.0))


def _window(node: ir.Node) -> dict[str, Any]:
    """The attributes of a convolution; what is the same along all axes as one number."""
    settings = {name: attribute(node, name, default) for name, default in _WINDOW.items()}
    return {name: _one(value) for name, value in settings.items()}


def _one(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)


def _without_bias(value: ir.Value) -> ir.Value | None:
    """``x`` of ``value = x + bias`` with a constant vector."""
    node = value.producer()
    if node is None or node.op_type != "Add":
        return None
    left, right = node.inputs
    for bias, other in ((right, left), (left, right)):
        if bias is not None and bias.const_value is not None and len(bias.const_value.shape) <= 1:
            return other
    return None


def _reshaped(value: ir.Value) -> ir.Value | None:
    """``x`` of ``value = Reshape(x)`` where the last axis, of known size, stays."""
    node = value.producer()
    if node is None or node.op_type != "Reshape":
        return None
    source = node.inputs[0]
    return source if _width(source) is not None and _width(source) == _width(value) else None


def _width(value: ir.Value | None) -> int | None:
    """The size of the last axis where it is known."""
    if value is None or value.shape is None or not len(value.shape):
        return None
    last = value.shape[-1]
    return last if isinstance(last, int) else None
