"""Ensures that constant factors are applied once, and to the smallest tensor they can be applied to.

LoRA's ``alpha / rank`` belongs on the few columns between its two matrices, not on the layer's output; the two square
roots that torch's exporter puts on queries and keys are one factor on the queries. The products are the same up to
rounding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of


def gather_scales(model: ir.Model) -> bool:
    """Move constant factors of matrix products, in place. Returns whether there was one to move."""
    emit = Emitter(model.graph)
    moved = False
    for node in list(model.graph):
        if node.op_type == "Mul":
            moved |= _before_the_product(node, emit)
        elif node.op_type == "MatMul":
            moved |= _on_one_side(node, emit)
    return moved


def _before_the_product(node: ir.Node, emit: Emitter) -> bool:
    """``Mul(MatMul(x, w), c)`` to ``MatMul(Mul(x, c), w)`` where ``x`` has fewer columns than ``w``."""
    scaled, factor = _scaled(node)
    product = scaled.producer() if scaled is not None else None
    if scaled is None or factor is None or product is None or product.op_type != "MatMul" or len(scaled.uses()) != 1:
        return False
    left, right = product.inputs
    if left is None or right is None or scaled.is_graph_output() or not _narrower(left, scaled):
        return False
    _replace_left(product, left, factor, emit)
    node.outputs[0].replace_all_uses_with(scaled, replace_graph_outputs=True)
    return True


def _on_one_side(product: ir.Node, emit: Emitter) -> bool:
    """``MatMul(Mul(a, c), Mul(b, d))`` to ``MatMul(Mul(a, c d), b)``."""
    sides = [_scaled(value.producer()) if value is not None else (None, None) for value in product.inputs]
    (left, first), (right, second) = sides
    if left is None or right is None or first is None or second is None:
        return False
    _replace_left(product, left, first * second, emit)
    product.replace_input_with(1, right)
    return True


def _replace_left(product: ir.Node, left: ir.Value, factor: float, emit: Emitter) -> None:
    constant = emit.scalar(factor, like=left)
    scale = ir.node("Mul", [left, constant], name=f"{product.name}/scale")
    scale.outputs[0].shape, scale.outputs[0].type = left.shape, left.type
    product.prepend(scale)
    product.replace_input_with(0, scale.outputs[0])


def _scaled(node: ir.Node | None) -> tuple[ir.Value | None, float | None]:
    """The tensor and the factor of a multiplication by a constant scalar."""
    if node is None or node.op_type != "Mul":
        return None, None
    for value, other in (node.inputs, node.inputs[::-1]):
        constant = ir.convenience.get_const_tensor(other) if other is not None else None
        if constant is not None and constant.numpy().ndim == 0 and value is not None and value.shape is not None:
            return value, float(np.asarray(constant.numpy()))
    return None, None


def _narrower(left: ir.Value, product: ir.Value) -> bool:
    columns, wanted = dims_of(left)[-1], dims_of(product)[-1]
    return isinstance(columns, int) and isinstance(wanted, int) and columns < wanted
