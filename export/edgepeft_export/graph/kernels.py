"""Ensures that quantized kernels of convolutions are dequantized once, when a device loads the graph.

Pattern: ``DequantizeLinear(q, scale, zero)`` of frozen tensors, of three axes and more.
Algebra: it is ``(Cast(q) - Cast(zero)) * scale``.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.constants import source_initializer
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands, present
from edgepeft_export.graph.shapes import dtype_of, rank


def dequantize_once(graph: ir.Graph) -> bool:
    """Write ``DequantizeLinear`` of frozen kernels, of three axes and more, as ``Cast`` and ``Mul``, in place.

    ONNX Runtime computes constant products when it loads a graph, but leaves each ``DequantizeLinear`` to every run.
    And only for constant kernels does it arrange images in blocks, in which a depthwise convolution is 2 to 5 times as
    fast. An input that is quantized stays, as in segments. Returns whether there were any.
    """
    found = [node for node in graph if node.op_type == "DequantizeLinear" and _is_kernel(node)]
    for node in found:
        emit = Emitter(graph)
        emit.scope = node.name or ""
        replace_value(node.outputs[0], _dequantized(node, emit))
        graph.remove(node, safe=True)
    if found:
        graph.sort()
    return bool(found)


def _is_kernel(node: ir.Node) -> bool:
    frozen = all(source_initializer(value) is not None for value in node.inputs if value is not None)
    return frozen and not node.attributes.get_int("block_size", 0) and rank(node.outputs[0]) > 2


def _dequantized(node: ir.Node, emit: Emitter) -> ir.Value:
    """(values - zero point) · scale, in the scale's type."""
    values, scale = operands(node, 2)
    zero_point = present(node, 2)
    axis, size = int(node.attributes.get_int("axis", 1)), rank(node.outputs[0])
    columns = emit.ints(*(-1 if index == axis % size else 1 for index in range(size)))

    def along_axis(value: ir.Value) -> ir.Value:
        floats = emit.cast(value, dtype_of(scale))
        return emit.op("Reshape", floats, columns) if rank(value) == 1 else floats

    result = emit.cast(values, dtype_of(scale))
    if zero_point is not None:
        result = emit.op("Sub", result, along_axis(zero_point))
    result = emit.op("Mul", result, along_axis(scale))
    result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
    return result
