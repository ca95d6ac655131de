"""Writes operators as those that define them, so that layers in them are found.

Such are those of ONNX Runtime's optimizers, linear models of scikit-learn, and what devices have no kernel for.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.definitions import DEFINITIONS, NotDefined, expand_definition
from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.opset.domains import CONTRIB, ML

_IN_ONNX_DOMAIN = frozenset({"SimplifiedLayerNormalization", "DeformConv"})
"""An operator of ONNX Runtime that has no domain of its own, and one that devices do not have."""


def raise_fused(model: ir.Model) -> None:
    """Replace all such nodes, in place. Where a definition does not cover a node, it stays.

    Shapes are inferred again and again, because a definition may need the number of axes of what another computes.
    """
    while nodes := _fused(model):
        infer_shapes(model)
        expanded = [node for node in nodes if _expanded(node)]
        fix_names(model)
        if not expanded:
            return


def _fused(model: ir.Model) -> list[ir.Node]:
    return [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if _is_fused(node)]


def _is_fused(node: ir.Node) -> bool:
    if node.domain in (CONTRIB, ML):
        return f"{node.domain}.{node.op_type}" in DEFINITIONS
    return not node.domain and node.op_type in _IN_ONNX_DOMAIN


def _expanded(node: ir.Node) -> bool:
    try:
        return bool(expand_definition(node))
    except NotDefined:
        return False
