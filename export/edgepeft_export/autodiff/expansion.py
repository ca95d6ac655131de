"""Replaces nodes without a gradient rule by nodes that have one."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgepeft_export.autodiff.registry import NO_GRADIENT, RULES, NoGradientForCase, full_name
from edgepeft_export.graph.custom_ops import BRANCH, DOMAIN, REPEAT
from edgepeft_export.graph.definitions import DEFINITIONS, NotDefined, expand_definition
from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.expanding.functions import expand_function, has_body
from edgepeft_export.graph.expanding.settling import settle
from edgepeft_export.graph.nested.bodies import graphs_of
from edgepeft_export.graph.nested.branches import with_inputs
from edgepeft_export.graph.nested.control_flow import SHORT, expand_control_flow
from edgepeft_export.graph.nested.iterations import StateChangesSize, as_scan, has_limit, repeat
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
    replaced = settle(graph)
    for node in nodes:
        if node.graph is graph:  # and has not been replaced already
            replaced |= (
                expand_control_flow(node, SHORT)
                or _branch(node, opset)
                or _repeated(node, opset)
                or _defined(node)
                or expand_function(node, opset)
            )
    if replaced:
        fix_names(ir.Model(graph, ir_version=IR_VERSION))
        replaced |= settle(graph)
    return replaced


def _branch(node: ir.Node, opset: int) -> dict[ir.Value, ir.Value]:
    """An ``If`` whose condition only the run knows, where gradients can cross its branches."""
    if node.op_type != "If" or node.domain:
        return {}
    if not _is_known(node, opset):
        return {}
    return with_inputs(node, BRANCH, DOMAIN)


def _repeated(node: ir.Node, opset: int) -> dict[ir.Value, ir.Value]:
    """A loop that is not short, where gradients can cross its body; otherwise its iterations, one by one."""
    if node.op_type not in ("Loop", "Scan") or node.domain:
        return {}
    reason = ""
    if _is_known(node, opset):
        try:
            found = as_scan(node) or (repeat(node, REPEAT, DOMAIN) if has_limit(node) else {})
            reason = "" if has_limit(node) else "it has no constant limit, and devices refuse a loop that may not end"
        except StateChangesSize as error:
            found, reason = {}, f"a state of the loop changes its size ({error})"
        if found:
            return found
    unrolled = expand_control_flow(node)
    if not unrolled and reason:
        raise NoGradientForCase(node, reason, "give it a constant trip count, and states of constant size")
    return unrolled


def _is_known(node: ir.Node, opset: int) -> bool:
    """Whether gradients can cross a node; of a branch or a loop, what is in it."""
    name, bodies = full_name(node), graphs_of(node)
    if bodies:
        return all(_is_known(inner, opset) for body in bodies for inner in body)
    no_float = all(value.dtype is not None and not value.dtype.is_floating_point() for value in node.outputs)
    return no_float or name in RULES or name in NO_GRADIENT or name in DEFINITIONS or has_body(node, opset)


def unknown(node: ir.Node, opset: int) -> str:
    """The operator that no gradient can cross: that of a node, or within its branches or its loop."""
    within = (inner for body in graphs_of(node) for inner in body if not _is_known(inner, opset))
    inner = next(within, None)
    return full_name(node) if inner is None else f"{unknown(inner, opset)} in {full_name(node)}"


def _defined(node: ir.Node) -> dict[ir.Value, ir.Value]:
    try:
        return expand_definition(node)
    except NotDefined as error:
        raise NoGradientForCase(node, error.reason, error.way_out) from error
