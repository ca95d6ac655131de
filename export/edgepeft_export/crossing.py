"""Try whether gradients cross a graph."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import NoGradientForCase
from edgepeft_export.autodiff.walk import NoGradientRule, differentiate_from
from edgepeft_export.forward.graph import Forward
from edgepeft_export.graph.edit import add_input
from edgepeft_export.graph.shapes import UnknownRank, dims_of


def has_branches(forward: Forward) -> bool:
    """Whether there is an ``If`` in a graph, or in a graph within it."""
    return any(node.op_type == "If" for node in ir.traversal.RecursiveGraphIterator(forward.model.graph))


def is_differentiable(forward: Forward) -> bool:
    """Whether gradients of the first output cross the graph. The graph stays as it is."""
    graph = forward.model.clone().graph
    y = graph.outputs[0]
    targets = [value for value in graph.inputs if value.name in forward.parameters]
    try:
        differentiate_from(graph, {y: add_input(graph, "gradient", dims_of(y), ir.DataType.FLOAT)}, targets)
    except (UnknownRank, NoGradientRule, NoGradientForCase):
        return False
    return True
