"""Sizes that ONNX's shape inference may have wrong are forgotten, so that rules ask the run for them."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import full_name
from edgepeft_export.autodiff.rules.einsum import is_misjudged
from edgepeft_export.graph.shapes import rank


def forget_misjudged_sizes(graph: ir.Graph) -> None:
    """Forget the sizes of what is computed from an Einsum that may broadcast, on the way of a gradient or not."""
    computed: set[ir.Value] = set()
    for node in graph:
        if any(value in computed for value in node.inputs) or (full_name(node) == "Einsum" and is_misjudged(node)):
            computed.update(node.outputs)
    for value in computed:
        if value.shape is not None:
            value.shape = ir.Shape([None] * rank(value))
