"""Ensures that a Squeeze has explicit axes, so that the rank of its result is known before it runs.

Pattern: ``Squeeze(x)`` without axes, which removes every axis that has size 1 at run time.
Algebra: ``Squeeze(x) = Squeeze(x, axes)`` with the axes whose size is 1 in the graph. A free axis stays, also where a
batch happens to have one example.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import new_initializer
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import dims_of


def name_squeezed_axes(model: ir.Model) -> bool:
    """Write down the axes of every Squeeze that has none, in place. Shapes must have been inferred.

    Returns whether there was one.
    """
    nodes = [n for n in model.graph if n.op_type == "Squeeze" and not n.domain and present(n, 1) is None]
    return bool([node for node in nodes if _name(node, model.graph)])


def _name(node: ir.Node, graph: ir.Graph) -> bool:
    read = operand(node)
    if read.shape is None:
        return False
    axes = np.array([axis for axis, dim in enumerate(dims_of(read)) if dim == 1], np.int64)
    node.resize_inputs(2)
    node.replace_input_with(1, new_initializer(graph, f"{node.outputs[0].name}.axes", axes))
    known, node.outputs[0].shape = node.outputs[0].shape, None
    if known is not None and len(known) != len(read.shape) - len(axes):
        _forget_after(node)
    return True


def _forget_after(node: ir.Node) -> None:
    """Forget shapes that follow from that of a node's output. A run with a batch of one has had too few axes there."""
    readers = [use.node for use in node.outputs[0].uses()]
    seen = set(readers)
    while readers:
        for value in readers.pop().outputs:
            value.shape = None
            new = [use.node for use in value.uses() if use.node not in seen]
            seen.update(new)
            readers += new
