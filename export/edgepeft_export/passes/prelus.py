"""Ensures that train graphs contain no PRelu, whose kernel in ONNX Runtime 1.32 uses one thread.

Pattern: ``PRelu(x, w)`` in float32. Algebra: ``PRelu(x, w) = Relu(x) + w · min(x, 0)``.

The gradient of w reads ``min(x, 0)`` too, and ONNX Runtime computes equal nodes once. ``docs/KERNELS.md`` has the
cost of both forms. Other graphs keep the operator, which accelerators have kernels for.

For train graphs, after the gradient, whose rule reads the operator.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from edgepeft_export.graph.edit import rewrite_node
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands


def write_out_prelus(model: ir.Model) -> bool:
    """Replace every PRelu, in place. Returns whether there was one."""
    found = [node for node in model.graph if _is_prelu(node)]
    for node in found:
        rewrite_node(node, "parts", partial(_parts, node))
    return bool(found)


def _parts(node: ir.Node, emit: Emitter) -> ir.Value:
    x, factor = operands(node)
    below = emit.op("Min", x, emit.scalar(0.0, like=x))
    return emit.op("Add", emit.op("Relu", x), emit.op("Mul", factor, below))


def _is_prelu(node: ir.Node) -> bool:
    return node.op_type == "PRelu" and not node.domain and operands(node)[0].dtype == ir.DataType.FLOAT
