"""Replaces nodes without a gradient rule by nodes that have one."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgepeft_export.autodiff.registry import NoGradientForCase
from edgepeft_export.graph.control_flow import expand_control_flow
from edgepeft_export.graph.definitions import NotDefined, expand_definition
from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.functions import expand_function
from edgepeft_export.graph.shape_folding import fold_shapes
from edgepeft_export.opset import IR_VERSION


def expand(graph: ir.Graph, nodes: Iterable[ir.Node]) -> dict[ir.Value, ir.Value]:
    """Replace those nodes of a graph that others can express, in place, and infer the shapes within.

    Such are functions that ONNX defines by other operators, branches of constant condition and short loops.

    Returns:
        The new value for each replaced one; empty where no node was replaced.
    """
    nodes, opset = list(nodes), graph.opset_imports.get("", 1)
    if not nodes:
        return {}
    replaced = _settle(graph)
    for node in nodes:
        if node.graph is graph:  # and has not been replaced already
            replaced |= expand_control_flow(node) or _defined(node) or expand_function(node, opset)
    if replaced:
        fix_names(ir.Model(graph, ir_version=IR_VERSION))
        replaced |= _settle(graph)
    return replaced


def _defined(node: ir.Node) -> dict[ir.Value, ir.Value]:
    try:
        return expand_definition(node)
    except NotDefined as error:
        raise NoGradientForCase(node, error.reason, error.way_out) from error


def _settle(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Compute shapes and conditions that are constant, and drop the branches that never run."""
    model, replaced = ir.Model(graph, ir_version=IR_VERSION), dict[ir.Value, ir.Value]()
    while True:
        fold_shapes(model)
        branches = [made for node in list(graph) if node.op_type == "If" and (made := expand_control_flow(node))]
        if not branches:
            return replaced
        for made in branches:
            replaced |= made
        fix_names(model)
