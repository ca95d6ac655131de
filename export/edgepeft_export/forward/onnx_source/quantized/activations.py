"""Ensures that an activation rounded by ``QuantizeLinear`` and ``DequantizeLinear`` is rounded by one ``FakeQuantize``.

Pattern: ``DequantizeLinear(QuantizeLinear(x, s, z), s, z)``. Between the two the activation is an integer, which no
gradient crosses.
Algebra: together they are ``FakeQuantize(x, s, z)``, whose gradient is the straight-through estimator.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import same_constant, source_initializer
from edgepeft_export.graph.custom_ops import DOMAIN, FAKE_QUANTIZE
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import producer_of


def raise_activations(graph: ir.Graph, emit: Emitter) -> None:
    """Raise every such pair, in place. A ``QuantizeLinear`` may have several readers."""
    for dequantize in [node for node in graph if node.op_type == "DequantizeLinear"]:
        quantize = _quantize(dequantize)
        if quantize is None:
            continue
        x, scale, zero_point = (*quantize.inputs, None)[:3]
        if zero_point is None:
            zero_point = emit.constant(np.zeros((), np.uint8))
        axis = int(quantize.attributes.get_int("axis", 1))
        emit.scope = dequantize.name or ""
        replace_value(dequantize.outputs[0], emit.op(FAKE_QUANTIZE, x, scale, zero_point, domain=DOMAIN, axis=axis))


def _quantize(dequantize: ir.Node) -> ir.Node | None:
    """The node that rounds the input of ``dequantize``, with the same scale; ``None`` for a weight."""
    quantize = producer_of(dequantize.inputs[0], "QuantizeLinear")
    if quantize is None or source_initializer(quantize.inputs[0]) is not None:
        return None
    ours, theirs = ((*node.inputs, None)[1:3] for node in (dequantize, quantize))
    if not all(same_constant(mine, other) for mine, other in zip(ours, theirs, strict=True)):
        return None
    given = (quantize.attributes.get(name) for name in ("block_size", "output_dtype"))
    return None if any(attribute is not None and attribute.value for attribute in given) else quantize
