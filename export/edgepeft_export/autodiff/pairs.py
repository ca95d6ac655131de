"""Ensures that narrow trained matrices that read one tensor, as LoRA's A of queries and values, are one product.

Pattern, with trained inputs a and b of few rows: ``MatMul(x, Transpose(a))`` and ``MatMul(x, Transpose(b))`` become
``Split(MatMul(x, Transpose(Concat(a, b))))``. Algebra: ``x [a; b]ᵀ = [x aᵀ, x bᵀ]``.

For train graphs, before the gradient, which then reads x once for all of them and adds to the gradient of x once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from edgepeft_export.autodiff.walk import leading_to
from edgepeft_export.graph.edit import remove_node
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, producer_of
from edgepeft_export.graph.shapes import Dim, dims_of, rank, static_dims

FEW = 4
"""The matrices have at most a fourth as many rows, all together, as columns."""


def join_pairs(model: ir.Model, parameters: Collection[str]) -> bool:
    """Join products of one tensor and trained matrices, in place. Returns whether there were any to join.

    Args:
        model: forward graph, whose first output is the loss.
        parameters: names of the inputs that may train.
    """
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        matrix = _matrix(node)
        if matrix is not None and matrix.name in parameters:
            groups.setdefault(operand(node), []).append(node)
    several = [nodes for nodes in groups.values() if len(nodes) > 1 and _is_narrow(nodes)]
    # A matrix that the loss does not depend on would get a gradient of zeros, and train.
    reaching = leading_to(list(model.graph), model.graph.outputs[0])
    joined = [nodes for nodes in several if all(node.outputs[0] in reaching for node in nodes)]
    for nodes in joined:
        _join(nodes, Emitter(model.graph))
    return bool(joined)


def _matrix(node: ir.Node) -> ir.Value | None:
    """The graph input [rows, columns] that a node multiplies by, transposed."""
    if node.op_type != "MatMul" or node.domain or operand(node).shape is None or rank(operand(node)) < 2:
        return None
    transpose = producer_of(operand(node, 1), "Transpose")
    matrix = None if transpose is None else operand(transpose)
    is_matrix = matrix is not None and matrix.is_graph_input() and len(static_dims(matrix) or ()) == 2
    return matrix if is_matrix else None


def _sizes(nodes: Sequence[ir.Node]) -> tuple[list[int], int]:
    """Rows of each matrix, and their columns."""
    shapes = [static_dims(matrix) or [] for node in nodes if (matrix := _matrix(node)) is not None]
    return [shape[0] for shape in shapes], shapes[0][1]


def _is_narrow(nodes: Sequence[ir.Node]) -> bool:
    rows, columns = _sizes(nodes)
    return FEW * sum(rows) <= columns


def _join(nodes: Sequence[ir.Node], emit: Emitter) -> None:
    first, (rows, columns) = nodes[0], _sizes(nodes)
    x, results = operand(first), [node.outputs[0] for node in nodes]
    matrices = [matrix for node in nodes if (matrix := _matrix(node)) is not None]
    concat = ir.node("Concat", matrices, {"axis": 0}, name=f"{first.name}/matrices")
    transpose = ir.node("Transpose", concat.outputs, {"perm": [1, 0]}, name=f"{first.name}/transposed")
    product = ir.node("MatMul", [x, *transpose.outputs], name=f"{first.name}/joined")
    inputs = [*product.outputs, emit.ints(*rows)]
    split = ir.node("Split", inputs, {"axis": -1}, num_outputs=len(rows), name=f"{first.name}/parts")
    shapes: list[list[Dim]] = [[sum(rows), columns], [columns, sum(rows)], [*dims_of(x)[:-1], sum(rows)]]
    for made, shape in zip((concat, transpose, product), shapes, strict=True):
        made.outputs[0].shape, made.outputs[0].type = ir.Shape(shape), results[0].type
    first.prepend([concat, transpose, product, split])
    for node, result, part in zip(nodes, results, split.outputs, strict=True):
        part.shape, part.type = result.shape, result.type
        result.replace_all_uses_with(part, replace_graph_outputs=True)
        part.name, result.name = result.name, None
        remove_node(node)
