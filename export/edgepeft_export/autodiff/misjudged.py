"""Drop sizes that ONNX's shape inference may have wrong, so that rules read them at run time."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import full_name
from edgepeft_export.autodiff.rules.einsum import expand_operands, is_misjudged
from edgepeft_export.graph.shapes import rank


def forget_misjudged_sizes(graph: ir.Graph) -> None:
    """Forget the sizes of all values computed from an Einsum that may broadcast, with or without a gradient.

    Operands with a size of 1 that is broadcast are expanded before it.
    """
    computed: set[ir.Value] = set()
    for node in list(graph):
        broadcasts = full_name(node) == "Einsum" and (expand_operands(node) | is_misjudged(node))
        if broadcasts or any(value in computed for value in node.inputs):
            computed.update(node.outputs)
    for value in computed:
        if value.shape is not None:
            value.shape = ir.Shape([None] * rank(value))
