"""Ensures that a matmul of integers, rounded at run time, is one node between float tensors.

Pattern: ``quantize_dynamic`` writes ``DynamicQuantizeLinear``, ``MatMulInteger`` or ``ConvInteger``, ``Cast``, ``Mul``
by both scales. ONNX Runtime's own optimizer fuses them to ``DynamicQuantizeMatMul`` or ``MatMulIntegerToFloat``.
Algebra: ``Cast(MatMulInteger(q, w)) · x_scale · scale = Int8MatMul(x, w, scale)`` with ``q`` the rounded x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.forward.onnx_source.quantized.exactness import exact
from edgepeft_export.graph.constants import is_frozen, source_initializer
from edgepeft_export.graph.custom_ops import int8_matmul
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import added_vector, only_reader, other_input, producer_of
from edgepeft_export.graph.shapes import Dim, dims_of, rank


@dataclass(frozen=True)
class _IntegerMatmul:
    """A matmul of integers, and its float result.

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
    """Raise every matmul of integers with a constant weight, in place."""
    for node in list(graph):
        raised = _RAISED.get(node.op_type)
        if raised is not None:
            emit.scope = node.name or ""
            raised(node, emit)


def _raise_dynamic(node: ir.Node, emit: Emitter) -> None:
    """``DynamicQuantizeMatMul(x, w, scale, zero_point, bias)`` is the fused form."""
    x, w, scale, zero_point, bias = (*node.inputs, None, None)[:5]
    matrix = _matrix(w)
    if x is not None and scale is not None and matrix is not None:
        w, zero_point = exact(matrix[0], zero_point, emit)
        matmul = int8_matmul(emit, x, w, scale, zero_point, bias, trans_b=matrix[1])
        replace_value(node.outputs[0], matmul)


def _raise_to_float(node: ir.Node, emit: Emitter) -> None:
    x, w, x_scale, scale, x_zero_point, zero_point, bias = (*node.inputs, None, None, None)[:7]
    if x is not None and w is not None and x_scale is not None and scale is not None:
        _emit_matmul(_IntegerMatmul(node.outputs[0], x, x_scale, x_zero_point, w, scale, zero_point, bias), emit)


def _raise_matmul(node: ir.Node, emit: Emitter) -> None:
    matmul = _dequantized(node)
    if matmul is not None:
        _emit_matmul(matmul, emit)


def _raise_conv(node: ir.Node, emit: Emitter) -> None:
    matmul = _dequantized(node)
    if matmul is None or source_initializer(matmul.w) is None:
        return
    if matmul.zero_point is not None and dims_of(matmul.zero_point) != dims_of(matmul.scale):
        return
    kernel = emit.op("DequantizeLinear", matmul.w, matmul.scale, matmul.zero_point, axis=0)
    kernel.dtype, kernel.shape = ir.DataType.FLOAT, matmul.w.shape
    settings = {name: attribute.value for name, attribute in node.attributes.items()}
    inputs = [_float(matmul, emit), kernel, *([] if matmul.bias is None else [matmul.bias])]
    replace_value(matmul.result, emit.op("Conv", *inputs, domain="", **settings))


_RAISED: dict[str, Callable[[ir.Node, Emitter], None]] = {
    "MatMulInteger": _raise_matmul,
    "ConvInteger": _raise_conv,
    "DynamicQuantizeMatMul": _raise_dynamic,
    "MatMulIntegerToFloat": _raise_to_float,
}


def _emit_matmul(matmul: _IntegerMatmul, emit: Emitter) -> None:
    matrix = _matrix(matmul.w)
    if matrix is None:
        return
    columns = dims_of(matrix[0])[0 if matrix[1] else 1]
    bias, result = (matmul.bias, matmul.result) if matmul.bias is not None else _with_bias(matmul, columns)
    w, zero_point = exact(matrix[0], matmul.zero_point, emit)
    x = _float(matmul, emit)
    replace_value(result, int8_matmul(emit, x, w, matmul.scale, zero_point, bias, trans_b=matrix[1]))


def _float(matmul: _IntegerMatmul, emit: Emitter) -> ir.Value:
    """The input before rounding, or the dequantized input where integers come from a quantized look-up table."""
    rounding = producer_of(matmul.x, "DynamicQuantizeLinear")
    if rounding is not None and rounding.inputs[0] is not None:
        return rounding.inputs[0]
    x = emit.op("DequantizeLinear", matmul.x, matmul.x_scale, matmul.x_zero_point)
    x.dtype, x.shape = ir.DataType.FLOAT, matmul.x.shape
    return x


def _dequantized(node: ir.Node) -> _IntegerMatmul | None:
    """The matmul that ``MatMulInteger`` or ``ConvInteger``, ``Cast`` and ``Mul`` by the scales' product form."""
    x, w, x_zero_point, zero_point = (*node.inputs, None, None)[:4]
    bias, total = _integer_bias(node.outputs[0]) or (None, node.outputs[0])
    cast = only_reader(total, "Cast")
    scaling = only_reader(cast.outputs[0], "Mul") if cast is not None else None
    if x is None or w is None or cast is None or scaling is None:
        return None
    factor = other_input(scaling, cast.outputs[0])
    scales = producer_of(factor, "Mul")
    if scales is None:
        return None
    x_scale, scale = scales.inputs
    if source_initializer(scale) is None:
        x_scale, scale = scale, x_scale
    if x_scale is None or scale is None or source_initializer(scale) is None:
        return None
    return _IntegerMatmul(scaling.outputs[0], x, x_scale, x_zero_point, w, scale, zero_point, bias)


def _integer_bias(result: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The float vector that is added in steps of the scales' product, as older quantizers write it, and the sum."""
    add = only_reader(result, "Add")
    value = None if add is None else other_input(add, result)
    for op_type in ("Reshape", "Cast", "Floor", "Div"):
        node = producer_of(value, op_type)
        value = value if node is None and op_type == "Reshape" else None if node is None else node.inputs[0]
    return None if add is None or not is_frozen(value) or value is None else (value, add.outputs[0])


def _matrix(w: ir.Value | None) -> tuple[ir.Value, int] | None:
    """The constant matrix that a matmul reads, and whether it is transposed, as in edgepeft's own merged files."""
    transpose = producer_of(w, "Transpose")
    stored = w if transpose is None else transpose.inputs[0]
    if stored is None or not is_frozen(stored) or rank(stored) != 2:
        return None
    return stored, int(transpose is not None)


def _with_bias(matmul: _IntegerMatmul, columns: Dim) -> tuple[ir.Value | None, ir.Value]:
    """The constant vector that is added to the result by its only reader, and the sum."""
    bias, total = added_vector(matmul.result, columns) or (None, matmul.result)
    return (bias, total) if is_frozen(bias) else (None, matmul.result)
