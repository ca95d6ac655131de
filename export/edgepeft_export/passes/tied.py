"""Ensures that a matmul reads a constant matrix as it is stored, and that a matrix is stored once.

Patterns: ``MatMul`` or ``Gemm`` of x with ``Transpose(w)``, or with a constant c that equals ``wᵀ`` of another
initializer. A language model's head often is its embedding, transposed by a node or by the exporter.
Algebra: ``x wᵀ = Gemm(rows(x), w, transB=1)``, reshaped: the kernel transposes w as it reads it, where onnxruntime
would fold ``Transpose(w)`` into a second matrix on the heap. A ``Gemm`` only changes its ``transB``. A bias that is
added afterwards becomes that of the Gemm.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import initializer_tensor, is_frozen, stored_array
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import added_vector, operand
from edgepeft_export.graph.shapes import dims_of, rank


def share_transposed(model: ir.Model) -> bool:
    """Let matmuls with a transposed matrix read the stored one, in place. Returns whether one did."""
    emit = Emitter(model.graph)
    copies = _transposed_copies(model.graph)
    shared = False
    for node in list(model.graph):
        original = _original(node, copies)
        if original is not None:
            emit.scope = node.name or ""
            (_flip if node.op_type == "Gemm" else _read_transposed)(node, original, emit)
            shared = True
    if shared:
        model.graph.sort()  # the new nodes were appended at the end
    return shared


def _original(node: ir.Node, copies: dict[ir.Value, ir.Value]) -> ir.Value | None:
    """The initializer whose transposed matrix ``node`` multiplies by."""
    if not _is_matmul(node):
        return None
    matrix = operand(node, 1)
    if matrix in copies:
        return copies[matrix]
    transpose = matrix.producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    stored = operand(transpose)
    return stored if is_frozen(stored) and rank(stored) == 2 and rank(matrix) == 2 else None


def _is_matmul(node: ir.Node) -> bool:
    """Whether ``node`` can multiply by a transposed matrix: a Gemm, or a MatMul whose left operand has rows."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    left = operand(node)
    return node.op_type == "Gemm" or (left.shape is not None and rank(left) >= 2)


def _transposed_copies(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Matrices that only matmuls read, each with the initializer it is a transposed copy of."""
    matrices = [value for value in graph.initializers.values() if _is_matrix(value)]
    by_dims: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in matrices:
        by_dims.setdefault(tuple(dims_of(value)), []).append(value)
    copies: dict[ir.Value, ir.Value] = {}
    for copy in matrices:
        if copy in copies.values() or not all(use.idx == 1 and _is_matmul(use.node) for use in copy.uses()):
            continue
        for original in by_dims.get(tuple(dims_of(copy)[::-1]), ()):
            if original is not copy and original not in copies and _is_transposed(copy, original):
                copies[copy] = original
                break
    return copies


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return is_frozen(value) and tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point()


def _is_transposed(copy: ir.Value, original: ir.Value) -> bool:
    if copy.dtype != original.dtype:
        return False
    left, right = stored_array(initializer_tensor(copy)), stored_array(initializer_tensor(original)).T
    return left.dtype == right.dtype and bool(np.array_equal(left[0], right[0]) and np.array_equal(left, right))


def _flip(gemm: ir.Node, original: ir.Value, _: Emitter) -> None:
    gemm.attributes["transB"] = ir.AttrInt64("transB", 1 - gemm.attributes.get_int("transB", 0))
    gemm.replace_input_with(1, original)


def _read_transposed(matmul: ir.Node, original: ir.Value, emit: Emitter) -> None:
    """``MatMul(x [..., in], wᵀ)`` to ``Gemm`` of the rows of ``x`` with ``w [out, in]``, transposed by the kernel."""
    left, old = operand(matmul), matmul.outputs[0]
    bias, total = added_vector(old, dims_of(original)[0]) or (None, old)
    leading = rank(left) - 1
    rows = left if leading == 1 else emit.op("Flatten", left, axis=leading)
    new = emit.op("Gemm", rows, original, bias, transB=1)
    if leading > 1:
        sizes = [emit.dim(left, axis) for axis in range(leading)]
        new = emit.op("Reshape", new, emit.op("Concat", *sizes, emit.dim(original, 0), axis=0))
    add = total.producer()
    replace_value(total, new)
    for node in dict.fromkeys((add, matmul)):
        assert node is not None
        remove_node(node)
