"""Gradients that the forward pass has computed already."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import ZERO, Flat, Gradients, rule
from edgepeft_export.graph.constants import known_number
from edgepeft_export.graph.custom_ops import DOMAIN, WITH_GRADIENT
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands


@rule(WITH_GRADIENT, domain=DOMAIN)
def with_gradient(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dy times the given gradients. dy is 1 where the node is the loss."""
    values = operands(node)[1:]
    count = len(values) // 2
    given = values[count:]
    scaled: list[ir.Value | Flat] = list(given if known_number(dy) == 1.0 else [emit.op("Mul", g, dy) for g in given])
    return ZERO, *scaled, *[ZERO] * count
