"""Ensures that a Squeeze says which axes it removes.

``Squeeze(x)`` removes every axis of size 1, so nobody knows the rank of its result before it runs. Named are the axes
that always have size 1; a free axis is kept, also where a batch happens to have one example.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.shapes import dims_of


def name_squeezed_axes(model: ir.Model) -> bool:
    """Name the axes of every Squeeze that has none, in place; shapes must have been inferred."""
    nodes = [node for node in model.graph if node.op_type == "Squeeze" and not node.domain and _names_none(node)]
    changed = [node for node in nodes if _name(node, model.graph)]
    return bool(changed)


def _names_none(node: ir.Node) -> bool:
    return len(node.inputs) < 2 or node.inputs[1] is None


def _name(node: ir.Node, graph: ir.Graph) -> bool:
    read = node.inputs[0]
    if read is None or read.shape is None:
        return False
    axes = np.array([axis for axis, dim in enumerate(dims_of(read)) if dim == 1], np.int64)
    name = f"{node.outputs[0].name}.axes"
    value = ir.Value(name=name, shape=ir.Shape(axes.shape), type=ir.TensorType(ir.DataType.INT64))
    value.const_value = ir.tensor(axes, name=name)
    graph.register_initializer(value)
    node.resize_inputs(2)
    node.replace_input_with(1, value)
    node.outputs[0].shape = None
    return True
