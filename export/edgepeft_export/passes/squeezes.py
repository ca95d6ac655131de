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
    node.outputs[0].shape = None
    return True
