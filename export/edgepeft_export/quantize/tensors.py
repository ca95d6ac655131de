"""The quantized tensors of a graph, with the float tensors they represent, by the nodes that dequantize them."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgepeft_export.graph.constants import initializer_tensor, source_initializer
from edgepeft_export.graph.custom_ops import CONTRIB, DOMAIN, INT8_MATMUL, TRANSPOSED
from edgepeft_export.graph.expansion import EXPAND
from edgepeft_export.graph.match import operand, present, producer_of
from edgepeft_export.quantization import QuantizedTensor

_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)
_QUANTIZED = (ir.DataType.INT8, ir.DataType.UINT8, *_FOUR_BITS)


def quantized_tensors(graph: ir.Graph) -> dict[str, QuantizedTensor]:
    """The float tensor of each quantized initializer, by its name, with the padding of 4-bit tables."""
    tensors: dict[str, QuantizedTensor] = {}
    for node in graph:
        for read, quantized in _read_by(node):
            value = source_initializer(read)
            if value is None or value.dtype not in _QUANTIZED:
                continue
            if node.op_type != "Gather" or value.name not in tensors:  # a matmul knows its size without padding
                tensors[str(value.name)] = quantized
    return tensors


def _read_by(node: ir.Node) -> list[tuple[ir.Value | None, QuantizedTensor]]:
    kind = (node.domain, node.op_type)
    if kind == (DOMAIN, INT8_MATMUL):
        matrix = QuantizedTensor("int8", _size(node.inputs[1]))
        return [(node.inputs[1], matrix), (present(node, TRANSPOSED), matrix)]
    if kind == (DOMAIN, EXPAND):
        return [_expanded(node)]
    if kind == (CONTRIB, "MatMulNBits"):
        elements = node.attributes.get_int("K", 0) * node.attributes.get_int("N", 0)
        return [(node.inputs[1], QuantizedTensor(f"int{node.attributes.get_int('bits', 4)}", elements))]
    if kind == ("", "DequantizeLinear"):
        value, stored = node.inputs[0], source_initializer(node.inputs[0])
        four = stored is not None and stored.dtype in _FOUR_BITS
        return [(value, QuantizedTensor("int4" if four else "int8", _size(value)))]
    return _looked_up(node) if kind == ("", "Gather") else []


def _expanded(node: ir.Node) -> tuple[ir.Value | None, QuantizedTensor]:
    """A 4-bit matrix, [pairs, group, outputs], or a table of which rows are looked up, [rows, pairs, group]."""
    swapped = producer_of(node.inputs[0], "Transpose")
    found = None if swapped is None else producer_of(swapped.inputs[0], "Gather")
    stored = operand(node if found is None else found)
    outputs = initializer_tensor(stored).shape.numpy()[2 if found is None else 0]
    return stored, QuantizedTensor("int4", outputs * node.attributes["inputs"].as_int())


def _looked_up(node: ir.Node) -> list[tuple[ir.Value | None, QuantizedTensor]]:
    """A table whose rows are integers, or a codebook read by its indices."""
    table, ids = node.inputs[:2]
    if any((swapped := use.node).op_type == "Transpose" and _is_expanded(swapped) for use in node.outputs[0].uses()):
        return []  # its expansion knows it
    halves = any(use.node.op_type in ("BitwiseAnd", "BitwiseXor") for use in node.outputs[0].uses())
    rows = QuantizedTensor("int4", 2 * _size(table)) if halves else QuantizedTensor("int8", _size(table))
    cast = ids.producer() if ids is not None else None
    stored = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    return [(table, rows), (stored, QuantizedTensor("codebook", _size(stored)))]


def _is_expanded(node: ir.Node) -> bool:
    return any(use.node.op_type == EXPAND for use in node.outputs[0].uses())


def _size(value: ir.Value | None) -> int:
    stored = source_initializer(value)
    tensor = stored.const_value if stored is not None else None
    return math.prod(tensor.shape.numpy()) if tensor is not None else 0
