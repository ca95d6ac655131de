"""Drop sizes that ONNX's shape inference may have wrong, so that rules read them at run time."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import full_name
from edgepeft_export.autodiff.rules.einsum import is_misjudged
from edgepeft_export.graph.shapes import rank


def forget_misjudged_sizes(graph: ir.Graph) -> None:
    """Forget the sizes of all values computed from an Einsum that may broadcast, with or without a gradient."""
    computed: set[ir.Value] = set()
    for node in graph:
        if any(value in computed for value in node.inputs) or (full_name(node) == "Einsum" and is_misjudged(node)):
            computed.update(node.outputs)
    for value in computed:
        if value.shape is not None:
            value.shape = ir.Shape([None] * rank(value))
