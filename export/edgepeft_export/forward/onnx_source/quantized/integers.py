"""Ensures that a product of integers, rounded at run time, is one node between float tensors.

``quantize_dynamic`` writes ``DynamicQuantizeLinear``, ``MatMulInteger`` or ``ConvInteger``, ``Cast``, ``Mul`` by both
scales; ONNX Runtime's own optimizer makes ``DynamicQuantizeMatMul`` or ``MatMulIntegerToFloat`` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.forward.onnx_source.quantized.exactness import exact
from edgepeft_export.forward.onnx_source.quantized.reading import only_reader, other_input, root, take_place
from edgepeft_export.graph.composites import int8_matmul
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of, rank


@dataclass(frozen=True)
class _Product:
    """A product of integers, and what the float result is called.

    Attributes:
        x, x_scale, x_zero_point: the rounded activation.
        w, scale, zero_point: the weight.
    """

    result: ir.Value
    x: ir.Value
    x_scale: ir.Value
    x_zero_point: ir.Value | None
    w: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    bias: ir.Value | None = None


def raise_integers(graph: ir.Graph, emit: Emitter) -> None:
    """Raise every product of integers with a constant weight, in place."""
    for node in list(graph):
        raised = _RAISED.get(node.op_type)
        if raised is not None:
            emit.scope = node.name or ""
            raised(node, emit)


def _raise_dynamic(node: ir.Node, emit: Emitter) -> None:
    """``DynamicQuantizeMatMul(x, w, scale, zero_point, bias)`` says what the composite says."""
    x, w, scale, zero_point, bias = (*node.inputs, None, None)[:5]
    matrix = _matrix(w)
    if x is not None and scale is not None and matrix is not None:
        w, zero_point = exact(matrix[0], zero_point, emit)
        product = int8_matmul(emit, x, w, scale, zero_point, bias, trans_b=matrix[1])
        take_place(node.outputs[0], product)


def _raise_to_float(node: ir.Node, emit: Emitter) -> None:
    x, w, x_scale, scale, x_zero_point, zero_point, bias = (*node.inputs, None, None, None)[:7]
    if x is not None and w is not None and x_scale is not None and scale is not None:
        _emit_matmul(_Product(node.outputs[0], x, x_scale, x_zero_point, w, scale, zero_point, bias), emit)


def _raise_matmul(node: ir.Node, emit: Emitter) -> None:
    product = _scaled(node)
    if product is not None:
        _emit_matmul(product, emit)


def _raise_conv(node: ir.Node, emit: Emitter) -> None:
    product = _scaled(node)
    if product is None or root(product.w) is None:
        return
    if product.zero_point is not None and dims_of(product.zero_point) != dims_of(product.scale):
        return
    kernel = emit.op("DequantizeLinear", product.w, product.scale, product.zero_point, axis=0)
    kernel.dtype, kernel.shape = ir.DataType.FLOAT, product.w.shape
    settings = {name: attribute.value for name, attribute in node.attributes.items()}
    take_place(product.result, emit.op("Conv", _float(product, emit), kernel, **settings))


_RAISED: dict[str, Callable[[ir.Node, Emitter], None]] = {
    "MatMulInteger": _raise_matmul,
    "ConvInteger": _raise_conv,
    "DynamicQuantizeMatMul": _raise_dynamic,
    "MatMulIntegerToFloat": _raise_to_float,
}


def _emit_matmul(product: _Product, emit: Emitter) -> None:
    matrix = _matrix(product.w)
    if matrix is None:
        return
    columns = dims_of(matrix[0])[0 if matrix[1] else 1]
    bias, result = (product.bias, product.result) if product.bias is not None else _with_bias(product, columns)
    w, zero_point = exact(matrix[0], product.zero_point, emit)
    x = _float(product, emit)
    take_place(result, int8_matmul(emit, x, w, product.scale, zero_point, bias, trans_b=matrix[1]))


def _float(product: _Product, emit: Emitter) -> ir.Value:
    """What was rounded; where it comes as integers already, from a packed look-up table, what they stand for."""
    before = product.x.producer()
    if before is not None and before.op_type == "DynamicQuantizeLinear" and before.inputs[0] is not None:
        return before.inputs[0]
    x = emit.op("DequantizeLinear", product.x, product.x_scale, product.x_zero_point)
    x.dtype, x.shape = ir.DataType.FLOAT, product.x.shape
    return x


def _scaled(node: ir.Node) -> _Product | None:
    """The product that ``MatMulInteger`` or ``ConvInteger``, ``Cast`` and ``Mul`` by the product of scales say."""
    x, w, x_zero_point, zero_point = (*node.inputs, None, None)[:4]
    cast = only_reader(node.outputs[0], "Cast")
    scaling = only_reader(cast.outputs[0], "Mul") if cast is not None else None
    if x is None or w is None or cast is None or scaling is None:
        return None
    factor = other_input(scaling, cast.outputs[0])
    scales = factor.producer() if factor is not None else None
    if scales is None or scales.op_type != "Mul":
        return None
    x_scale, scale = scales.inputs
    if root(scale) is None:
        x_scale, scale = scale, x_scale
    if x_scale is None or scale is None or root(scale) is None:
        return None
    return _Product(scaling.outputs[0], x, x_scale, x_zero_point, w, scale, zero_point)


def _matrix(w: ir.Value | None) -> tuple[ir.Value, int] | None:
    """The constant matrix that a product reads, and whether transposed, as edgepeft's own merged files have it."""
    if w is None:
        return None
    turn = w.producer()
    turned = turn is not None and turn.op_type == "Transpose" and not turn.domain
    stored = turn.inputs[0] if turn is not None and turned else w
    if stored is None or stored.const_value is None or stored.is_graph_input() or len(stored.const_value.shape) != 2:
        return None
    return stored, int(turned)


def _with_bias(product: _Product, columns: Dim) -> tuple[ir.Value | None, ir.Value]:
    """The constant vector that is added to the product by its only reader, and the sum."""
    add = only_reader(product.result, "Add")
    bias = other_input(add, product.result) if add is not None else None
    if add is None or bias is None or bias.const_value is None or bias.is_graph_input() or rank(bias) != 1:
        return None, product.result
    fits = dims_of(bias)[-1] == columns
    return (bias, add.outputs[0]) if fits else (None, product.result)
