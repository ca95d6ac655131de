"""Finds the operators that compute logits row by row from narrow rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgepeft_export.autodiff.registry import full_name
from edgepeft_export.graph.custom_ops import CONTRIB, DOMAIN, INT8_MATMUL
from edgepeft_export.graph.match import operand, operands
from edgepeft_export.graph.shapes import Dim, dims_of, rank

RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that number the rows otherwise, in the same order, where the last axis stays."""

# fmt: off
ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sqrt", "Exp", "Log", "Tanh", "Sigmoid", "Relu", "Softplus",
})
# fmt: on


@dataclass
class Operands:
    """The operands of an operator, by the way in which it reads them.

    Attributes:
        wide: a row of the result depends on the same row, as wide as that of the result.
        rows: a row of the result depends on the same row, of another width.
        shared: all rows of the result depend on the whole tensor.
    """

    wide: list[ir.Value] = field(default_factory=list)
    rows: list[ir.Value] = field(default_factory=list)
    shared: list[ir.Value] = field(default_factory=list)


@dataclass(frozen=True)
class RowWise:
    """Operators from narrow rows to wide ones, in the order of the graph; values as in :class:`Operands`."""

    nodes: tuple[ir.Node, ...]
    rows: tuple[ir.Value, ...]
    shared: tuple[ir.Value, ...]


def row_wise(wide: ir.Value, reader: ir.Node) -> RowWise | None:
    """All operators up to the matmuls that ``wide`` [..., columns] is computed by, or ``None``.

    ``None`` where an operator mixes rows, and where another node than ``reader`` needs one of the wide tensors.
    """
    found: dict[ir.Node, Operands] = {}
    queue, seen = [wide], {wide}
    while queue:
        value = queue.pop()
        read = _operands(value)
        node = value.producer()
        if read is None or node is None or value.is_graph_output():
            return None
        found[node] = read
        queue += [each for each in read.wide if each not in seen]
        seen.update(read.wide)
    if any(use.node not in found and use.node is not reader for value in seen for use in value.uses()):
        return None
    ordered = tuple(node for node in reader.graph or () if node in found)
    rows = dict.fromkeys(value for node in ordered for value in found[node].rows)
    shared = dict.fromkeys(value for node in ordered for value in found[node].shared)
    return RowWise(ordered, tuple(rows), tuple(shared))


def _operands(value: ir.Value) -> Operands | None:
    node = value.producer()
    if node is None or value.shape is None or len(node.outputs) != 1 or rank(value) < 2:
        return None
    if any(read is not None and read.shape is None for read in node.inputs):
        return None
    return _READERS[full_name(node)](node) if full_name(node) in _READERS else None


def _matmul(node: ir.Node) -> Operands | None:
    x, *shared = (value for value in node.inputs if value is not None)
    by_matrix = node.op_type != "MatMul" or rank(operand(node, 1)) == 2
    if rank(x) < 2 or not by_matrix or not all(map(_is_vector, shared[1:] if node.op_type == "Gemm" else ())):
        return None
    if node.attributes.get_int("transA", 0) or not isinstance(dims_of(x)[-1], int):
        return None
    return Operands([], [x], shared)


def _reshape(node: ir.Node) -> Operands | None:
    (given, result) = operand(node), node.outputs[0]
    kept = rank(given) > 1 and dims_of(given)[-1] == dims_of(result)[-1]
    return Operands([given]) if kept else None


def _elementwise(node: ir.Node) -> Operands | None:
    result, read = dims_of(node.outputs[0]), Operands()
    free = [value for value in operands(node) if not _is_shared(value)]
    for value in operands(node):
        dims = dims_of(value)
        if value not in free:
            read.shared.append(value)
        elif len(dims) != len(result) or not (len(free) == 1 or _same_rows(dims, result)):
            return None
        elif dims[-1] == result[-1]:
            read.wide.append(value)
        elif dims[-1] == 1:
            read.rows.append(value)
        else:
            return None
    return read


def _same_rows(dims: list[Dim], result: list[Dim]) -> bool:
    return None not in dims and dims[:-1] == result[:-1]


def _is_shared(value: ir.Value) -> bool:
    """Whether an operand has no rows of its own, but is broadcast over all."""
    return all(dim == 1 for dim in dims_of(value)[:-1])


def _is_vector(value: ir.Value) -> bool:
    return rank(value) <= 1


_READERS: Mapping[str, Callable[[ir.Node], Operands | None]] = {
    **dict.fromkeys(("MatMul", "Gemm", f"{DOMAIN}.{INT8_MATMUL}", f"{CONTRIB}.MatMulNBits"), _matmul),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
}
