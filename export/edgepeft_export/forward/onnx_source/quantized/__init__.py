"""Raises the operators that quantizers write in an ``.onnx`` file to operators that a gradient can cross.

The quantized tensors are kept bit for bit. Only the operators around them change.

* ``quantize_static`` with ``QuantFormat.QDQ``: ``QuantizeLinear`` and ``DequantizeLinear`` of an activation become one
  ``FakeQuantize``; a ``DequantizeLinear`` of a constant, weight or bias, stays.
* ``quantize_dynamic``: the integers between ``DynamicQuantizeLinear`` and the scaled result become one ``Int8MatMul``;
  of a convolution, a ``Conv`` with a dequantized kernel, whose input is no longer rounded, and of an LSTM, one with
  dequantized weights.
* ``MatMulNBitsQuantizer``: ``MatMulNBits`` stays, and so do its blocks in QDQ format; ``GatherBlockQuantized``, which
  ONNX Runtime has from 1.20 on, becomes a look-up of the same bytes.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.forward.onnx_source.quantized.activations import raise_activations
from edgepeft_export.forward.onnx_source.quantized.integers import raise_integers
from edgepeft_export.forward.onnx_source.quantized.recurrent import raise_recurrent
from edgepeft_export.forward.onnx_source.quantized.shapes import infer_quantized_shapes
from edgepeft_export.forward.onnx_source.quantized.tables import raise_tables
from edgepeft_export.graph.emit import Emitter

__all__ = ["needs_4_bits", "raise_quantized"]

_4_BITS = (ir.DataType.INT4, ir.DataType.UINT4)


def raise_quantized(model: ir.Model) -> None:
    """Raise all quantized operators, in place, and infer shapes."""
    emit = Emitter(model.graph)
    raise_recurrent(model.graph, emit)
    model.graph.sort()  # the new nodes were appended at the end
    infer_quantized_shapes(model)
    for edit in (raise_integers, raise_activations, raise_tables):
        edit(model.graph, emit)
    model.graph.sort()
    common.RemoveUnusedNodesPass()(model)


def needs_4_bits(model: ir.Model) -> bool:
    """Whether the graphs of a model need opset 21, for tensors of 4 bits or scales per block."""
    if any(value.dtype in _4_BITS for value in model.graph.initializers.values()):
        return True
    return any(node.op_type == "MatMulNBits" or "block_size" in node.attributes for node in model.graph)
