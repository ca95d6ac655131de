"""Ensures that a recurrent network with quantized weights is one that a gradient can cross.

Pattern: ``DynamicQuantizeLSTM`` with constant W [directions, in, 4 · hidden] and R, of integers.
Algebra: an ``LSTM`` of the dequantized weights, transposed. Its input and its states are no longer rounded to 8 bits.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.constants import is_frozen
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import rank, static_dims

_W, _R = (1, 8), (2, 10)
"""The inputs of the operator that are a weight and its scale, which the zero point follows."""


def raise_recurrent(graph: ir.Graph, emit: Emitter) -> None:
    """Raise every such node, in place. Attributes are those of the LSTM."""
    for node in [node for node in graph if node.op_type == "DynamicQuantizeLSTM"]:
        if not all(is_frozen(operand(node, index)) for index in (*_W, *_R)):
            continue
        emit.scope = node.name or ""
        weights = [_dequantized(node, weight, scale, emit) for weight, scale in (_W, _R)]
        inputs = [operand(node), *weights, *(present(node, index) for index in range(3, 8))]
        attributes = node.attributes.values()
        new = ir.Node("", "LSTM", inputs, attributes, num_outputs=len(node.outputs), name=node.name)
        graph.append(new)
        for old, made in zip(node.outputs, new.outputs, strict=True):
            replace_value(old, made)
        remove_node(node)


def _dequantized(node: ir.Node, index: int, at_scale: int, emit: Emitter) -> ir.Value:
    """A weight as an LSTM reads it, [directions, 4 · hidden, in]. Scales are per direction, or per row of it."""
    weight, scale, zero_point = operand(node, index), operand(node, at_scale), present(node, at_scale + 1)
    directions, inputs, rows = static_dims(weight) or (0, 0, 0)
    integers = emit.op("Transpose", weight, perm=[0, 2, 1])
    if rank(scale) == 2:
        integers = emit.op("Reshape", integers, emit.ints(directions * rows, inputs))
        scale = emit.op("Reshape", scale, emit.ints(-1))
        zero_point = None if zero_point is None else emit.op("Reshape", zero_point, emit.ints(-1))
    floats = emit.op("DequantizeLinear", integers, scale, zero_point, axis=0)
    floats.dtype = ir.DataType.FLOAT
    whole = emit.op("Reshape", floats, emit.ints(directions, rows, inputs))
    whole.shape = ir.Shape([directions, rows, inputs])
    return whole
