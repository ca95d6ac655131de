"""Ensures that constant factors are applied once, and to the smallest tensor they can be applied to.

Patterns, with constant numbers c and d:

* ``Mul(MatMul(x, w), c)`` becomes ``MatMul(Mul(x, c), w)`` where x has fewer columns than w: LoRA's ``alpha / rank``
  belongs on the few columns between its two matrices, not on the layer's output;
* ``MatMul(Mul(a, c), Mul(b, d))`` becomes ``MatMul(Mul(a, c d), b)``: the two square roots that torch's exporter puts
  on queries and keys are one factor on the queries.

Algebra: ``c (x w) = (c x) w`` and ``(c a) (d b) = (c d a) b``, up to rounding.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.constants import constant_factor
from edgepeft_export.graph.edit import eliminate_node
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import only_reader, operand, producer_of
from edgepeft_export.graph.shapes import dims_of


def gather_scales(model: ir.Model) -> bool:
    """Move constant factors of matmuls, in place. Returns whether there was one to move."""
    emit = Emitter(model.graph)
    moved = False
    for node in list(model.graph):
        if node.op_type == "Mul":
            moved |= _before_the_matmul(node, emit)
        elif node.op_type == "MatMul":
            moved |= _on_one_side(node, emit)
    return moved


def _before_the_matmul(node: ir.Node, emit: Emitter) -> bool:
    factor, scaled = constant_factor(node.outputs[0]) or (1.0, None)
    matmul = producer_of(scaled, "MatMul")
    if matmul is None or scaled is None or only_reader(scaled, "Mul") is None:
        return False
    if not _narrower(operand(matmul), scaled):
        return False
    _scale_left(matmul, operand(matmul), factor, emit)
    eliminate_node(node, list(node.inputs).index(scaled))
    return True


def _on_one_side(matmul: ir.Node, emit: Emitter) -> bool:
    left, right = (constant_factor(value) if value and producer_of(value, "Mul") else None for value in matmul.inputs)
    if left is None or right is None or left[1].shape is None:
        return False
    _scale_left(matmul, left[1], left[0] * right[0], emit)
    matmul.replace_input_with(1, right[1])
    return True


def _scale_left(matmul: ir.Node, left: ir.Value, factor: float, emit: Emitter) -> None:
    scale = ir.node("Mul", [left, emit.scalar(factor, like=left)], name=f"{matmul.name}/scale")
    scale.outputs[0].shape, scale.outputs[0].type = left.shape, left.type
    matmul.prepend(scale)
    matmul.replace_input_with(0, scale.outputs[0])


def _narrower(left: ir.Value, result: ir.Value) -> bool:
    if left.shape is None or result.shape is None:
        return False
    columns, wanted = dims_of(left)[-1], dims_of(result)[-1]
    return isinstance(columns, int) and isinstance(wanted, int) and columns < wanted
