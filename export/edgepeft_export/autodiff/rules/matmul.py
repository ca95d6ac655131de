"""Matmuls.

A matmul with a matrix (rank 2) on the right is the bulk of every network. Its gradients are single ``Gemm`` nodes over
flattened tensors. They read the weight in place, transposed by the kernel, so no transposed copy is stored.
"""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, rule
from edgepeft_export.autodiff.rules.reading import reshaped_like
from edgepeft_export.graph.custom_ops import CONTRIB
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, operands, present
from edgepeft_export.graph.shapes import Dim, dims_of, rank


@rule("Det")
def determinant(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dA = dy det(A) A⁻ᵀ (Giles, 2008), of matrices that have an inverse."""
    a, det = operand(node), node.outputs[0]
    inverse = emit.op("Inverse", a, domain=CONTRIB)
    factor = emit.op("Unsqueeze", emit.op("Mul", dy, det), emit.ints(-2, -1))
    return (emit.op("Mul", factor, _transposed(inverse, rank(a), emit)),)


@rule("MatMul")
def matmul(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    a, b = operands(node)
    if rank(b) == 2 and rank(a) >= 2:
        return _times_matrix(a, b, dy, emit)
    if 1 in (rank(a), rank(b)):
        return _times_vector(node, a, b, dy, emit)
    batch = dims_of(node.outputs[0])[:-2]
    da = emit.op("MatMul", dy, _transposed(b, rank(b), emit))
    db = emit.op("MatMul", _transposed(a, rank(a), emit), dy)
    return emit.sum_to(da, batch + dims_of(a)[-2:], a), emit.sum_to(db, batch + dims_of(b)[-2:], b)


def _times_matrix(a: ir.Value, b: ir.Value, dy: ir.Value, emit: Emitter) -> Gradients:
    rows = rank(a) - 1
    flat_a = a if rows == 1 else emit.op("Flatten", a, axis=rows)
    flat_dy = dy if rows == 1 else emit.op("Flatten", dy, axis=rows)
    da = emit.op("Gemm", flat_dy, b, transB=1)
    if rows > 1:
        da = reshaped_like(da, None, a, emit)
    return da, emit.op("Gemm", flat_a, flat_dy, transA=1)


def _times_vector(node: ir.Node, a: ir.Value, b: ir.Value, dy: ir.Value, emit: Emitter) -> Gradients:
    """Treat a vector on the left as one row, one on the right as one column, and their gradients likewise."""
    row, column = rank(a) == 1, rank(b) == 1
    matrix_a = emit.op("Unsqueeze", a, emit.ints(0)) if row else a
    matrix_b = emit.op("Unsqueeze", b, emit.ints(1)) if column else b
    batch = dims_of(node.outputs[0])
    batch = batch[: len(batch) - (not row) - (not column)]
    lifted = [axis for axis, missing in ((-2, row), (-1, column)) if missing]
    dy = emit.op("Unsqueeze", dy, emit.ints(*lifted))
    da = emit.op("MatMul", dy, _transposed(matrix_b, max(rank(b), 2), emit))
    db = emit.op("MatMul", _transposed(matrix_a, max(rank(a), 2), emit), dy)
    if row:
        da = emit.op("Squeeze", da, emit.ints(-2))
    if column:
        db = emit.op("Squeeze", db, emit.ints(-1))
    core_a: list[Dim] = dims_of(a)[-1:] if row else dims_of(a)[-2:]
    core_b: list[Dim] = dims_of(b)[-1:] if column else dims_of(b)[-2:]
    return emit.sum_to(da, batch + core_a, a), emit.sum_to(db, batch + core_b, b)


def _transposed(value: ir.Value, of_rank: int, emit: Emitter) -> ir.Value:
    axes = list(range(of_rank))
    axes[-2:] = axes[-1], axes[-2]
    return emit.op("Transpose", value, perm=axes)


@rule("Gemm")
def gemm(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Y = α op(A) op(B) + β C, each gradient one Gemm whichever operands are transposed."""
    a, b = node.inputs[:2]
    alpha = float(node.attributes.get_float("alpha", 1.0))
    trans_a, trans_b = (int(node.attributes.get_int(name, 0)) for name in ("transA", "transB"))
    da = (
        emit.op("Gemm", b, dy, transA=trans_b, transB=1, alpha=alpha)
        if trans_a
        else emit.op("Gemm", dy, b, transB=1 - trans_b, alpha=alpha)
    )
    db = (
        emit.op("Gemm", dy, a, transA=1, transB=trans_a, alpha=alpha)
        if trans_b
        else emit.op("Gemm", a, dy, transA=1 - trans_a, alpha=alpha)
    )
    return da, db, _gemm_bias(node, dy, emit)


def _gemm_bias(node: ir.Node, dy: ir.Value, emit: Emitter) -> ir.Value | None:
    c = present(node, 2)
    if c is None:
        return None
    dc = emit.sum_to(dy, dims_of(node.outputs[0]), c)
    beta = float(node.attributes.get_float("beta", 1.0))
    return dc if beta == 1.0 else emit.op("Mul", dc, emit.scalar(beta, like=c))
