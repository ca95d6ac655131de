"""Decides branches: computes shapes and conditions that are constant, and drops the branches that never run."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.expanding.shape_folding import fold_shapes
from edgepeft_export.graph.nested.control_flow import expand_control_flow
from edgepeft_export.opset import IR_VERSION


def settle(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Decide the branches of a graph, in place. Returns the new value for each replaced one."""
    model, replaced = ir.Model(graph, ir_version=IR_VERSION), dict[ir.Value, ir.Value]()
    while True:
        fold_shapes(model)
        branches = [made for node in list(graph) if node.op_type == "If" and (made := expand_control_flow(node))]
        if not branches:
            return replaced
        for made in branches:
            replaced |= made
        fix_names(model)
