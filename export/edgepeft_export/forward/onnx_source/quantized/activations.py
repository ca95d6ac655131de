"""Ensures that an activation rounded by ``QuantizeLinear`` and ``DequantizeLinear`` is rounded by one ``FakeQuantize``.

Between the two the activation is an integer, and no gradient crosses that; what the two say together has one: the
straight-through estimator.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.forward.onnx_source.quantized.reading import root, same, take_place
from edgepeft_export.graph.composites import DOMAIN, FAKE_QUANTIZE
from edgepeft_export.graph.emit import Emitter


def raise_activations(graph: ir.Graph, emit: Emitter) -> None:
    """Raise every such pair, in place; a ``QuantizeLinear`` may have several readers."""
    for dequantize in [node for node in graph if node.op_type == "DequantizeLinear"]:
        quantize = _quantize(dequantize)
        if quantize is None:
            continue
        x, scale, zero_point = (*quantize.inputs, None)[:3]
        if zero_point is None:
            zero_point = emit.constant(np.zeros((), np.uint8))
        axis = int(quantize.attributes.get_int("axis", 1))
        emit.scope = dequantize.name or ""
        take_place(dequantize.outputs[0], emit.op(FAKE_QUANTIZE, x, scale, zero_point, domain=DOMAIN, axis=axis))


def _quantize(dequantize: ir.Node) -> ir.Node | None:
    """The node that rounds what ``dequantize`` reads, with the same scale; ``None`` where it is a weight."""
    read = dequantize.inputs[0]
    quantize = read.producer() if read is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear" or root(quantize.inputs[0]) is not None:
        return None
    ours, theirs = ((*node.inputs, None)[1:3] for node in (dequantize, quantize))
    if not all(same(one, other) for one, other in zip(ours, theirs, strict=True)):
        return None
    given = (quantize.attributes.get(name) for name in ("block_size", "output_dtype"))
    return None if any(attribute is not None and attribute.value for attribute in given) else quantize
