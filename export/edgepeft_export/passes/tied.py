"""Ensures that a matrix that is read both directly and transposed is stored once.

Pattern: ``MatMul(x, c)`` with a constant c that equals ``wᵀ`` of another initializer. A language model's head often is
its embedding, transposed, and the exporter folds the transposition into a second constant.
Algebra: ``x c = Gemm(rows(x), w, transB=1)``, reshaped: the kernel transposes w as it reads it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import initializer_array
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import dims_of, rank


def share_transposed(model: ir.Model) -> bool:
    """Let matmuls with a transposed copy of another initializer read that one, in place. Returns whether one did."""
    emit = Emitter(model.graph)
    shared = False
    for copy, original in _transposed_copies(model.graph):
        for use in list(copy.uses()):
            emit.scope = use.node.name or ""
            _read_transposed(use.node, original, emit)
        shared = True
    if shared:
        model.graph.sort()  # the new nodes were appended at the end
    return shared


def _transposed_copies(graph: ir.Graph) -> list[tuple[ir.Value, ir.Value]]:
    """Matrices that only matmuls read, each with the initializer it is a transposed copy of."""
    matrices = [value for value in graph.initializers.values() if _is_matrix(value)]
    copies: dict[ir.Value, ir.Value] = {}
    for copy in matrices:
        if not all(use.node.op_type == "MatMul" and use.idx == 1 and _has_rows(use.node) for use in copy.uses()):
            continue
        for original in matrices:
            if original is not copy and original not in copies and _is_transposed(copy, original):
                copies[copy] = original
                break
    return list(copies.items())


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point()


def _has_rows(matmul: ir.Node) -> bool:
    left = matmul.inputs[0]
    return left is not None and left.shape is not None and rank(left) >= 2


def _is_transposed(copy: ir.Value, original: ir.Value) -> bool:
    if copy.dtype != original.dtype or dims_of(copy) != dims_of(original)[::-1]:
        return False
    left, right = initializer_array(copy), initializer_array(original).T
    return bool(np.array_equal(left[0], right[0]) and np.array_equal(left, right))


def _read_transposed(matmul: ir.Node, original: ir.Value, emit: Emitter) -> None:
    """``MatMul(x [..., in], wT)`` to ``Gemm`` of the rows of ``x`` with ``w [out, in]``, transposed by the kernel."""
    left, old = operand(matmul), matmul.outputs[0]
    leading = rank(left) - 1
    rows = left if leading == 1 else emit.op("Flatten", left, axis=leading)
    new = emit.op("Gemm", rows, original, transB=1)
    if leading > 1:
        sizes = [emit.dim(left, axis) for axis in range(leading)]
        new = emit.op("Reshape", new, emit.op("Concat", *sizes, emit.dim(original, 0), axis=0))
    replace_value(old, new)
    remove_node(matmul)
