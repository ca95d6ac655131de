"""Finds the operators that compute a tensor row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgepeft_export.autodiff.registry import full_name
from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.custom_ops import CONTRIB, DOMAIN, INT8_MATMUL
from edgepeft_export.graph.match import operand, operands, present
from edgepeft_export.graph.shapes import Dim, dims_of, rank

RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that number the rows otherwise, in the same order, where the last axis stays."""

# fmt: off
ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sqrt", "Exp", "Log", "Tanh", "Sigmoid", "Relu", "Softplus",
    "Reciprocal", "Erf", "Gelu", "Elu", "Selu", "Celu", "Mish", "LeakyRelu", "HardSigmoid", "HardSwish", "Softsign",
    "ThresholdedRelu", "Max", "Min", "Cast",
})
# fmt: on

AXES = {
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax", "ReduceMin"), 1),
    "Slice": 3,
}
"""Operators along the axes of an input, with its index."""

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


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
    """Operators that compute rows from rows, in the order of the graph; values as in ``Operands``."""

    nodes: tuple[ir.Node, ...]
    rows: tuple[ir.Value, ...]
    shared: tuple[ir.Value, ...]


def row_wise(wide: ir.Value, reader: ir.Node) -> RowWise | None:
    """All operators up to the matmuls that ``wide`` [..., columns] is computed by, or ``None``.

    ``None`` where an operator mixes rows or is no matmul and changes their width, and where another node than
    ``reader`` needs one of the wide tensors.
    """
    found: dict[ir.Node, Operands] = {}
    queue, seen = [wide], {wide}
    while queue:
        value = queue.pop()
        node = value.producer()
        read = None if node is None else _operands(node)
        if node is None or read is None or value.is_graph_output() or (read.rows and _reader(node) is not _matmul):
            return None
        found[node] = read
        queue += [each for each in read.wide if each not in seen]
        seen.update(read.wide)
    if any(use.node not in found and use.node is not reader for value in seen for use in value.uses()):
        return None
    return _region(reader.graph, found)


def rows_before(value: ir.Value) -> RowWise | None:
    """All operators that compute ``value`` row by row and that nothing else needs, or ``None``."""
    found: dict[ir.Node, Operands] = {}
    rows, shared = {value}, set[ir.Value]()
    last = value.producer()
    for node in reversed(list(value.graph or ())):
        inner = [output for output in node.outputs if output is not value]
        if rows.isdisjoint(node.outputs) or not shared.isdisjoint(node.outputs):
            continue
        if any(output.is_graph_output() or any(use.node not in found for use in output.uses()) for output in inner):
            continue
        read = _operands(node)
        if read is None and node is last:
            return None
        if read is not None:
            found[node] = read
            rows.update((*read.wide, *read.rows))
            shared.update(read.shared)
    return _region(value.graph, found)


def _region(graph: ir.Graph | ir.Function | None, found: Mapping[ir.Node, Operands]) -> RowWise:
    nodes = tuple(node for node in graph or () if node in found)
    made = {output for node in nodes for output in node.outputs}
    rows = dict.fromkeys(value for node in nodes for value in (*found[node].wide, *found[node].rows))
    shared = dict.fromkeys(value for node in nodes for value in found[node].shared)
    return RowWise(nodes, tuple(value for value in rows if value not in made), tuple(shared))


def _operands(node: ir.Node) -> Operands | None:
    if any(value is not None and value.shape is None for value in (*node.inputs, *node.outputs)):
        return None
    reader = _reader(node)
    return reader(node) if reader is not None and rank(node.outputs[0]) >= 2 else None


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


def _along_axes(node: ir.Node) -> Operands | None:
    """A reduction, or a part of each row."""
    x, axes = operand(node), present(node, AXES[node.op_type])
    kept = node.op_type == "Slice" or node.attributes.get_int("keepdims", 1) == 1
    if rank(x) < 2 or not kept or known_ints(axes) not in ([-1], [rank(x) - 1]):
        return None
    return Operands([], [x], [value for value in node.inputs[1:] if value is not None and value is not axes])


def _norm(node: ir.Node) -> Operands | None:
    x, *shared = operands(node)
    wanted = all(map(_is_vector, shared)) and len(node.outputs) == 1
    return Operands([x], [], shared) if wanted and _is_last(node, x, -1) else None


def _softmax(node: ir.Node) -> Operands | None:
    return Operands([operand(node)]) if _is_last(node, operand(node), -1) else None


def _concat(node: ir.Node) -> Operands | None:
    values, result = operands(node), dims_of(node.outputs[0])
    same = all(rank(value) == len(result) and _same_rows(dims_of(value), result) for value in values)
    return Operands([], values) if same and _is_last(node, values[0], 0) else None


def _split(node: ir.Node) -> Operands | None:
    x, *shared = operands(node)
    return Operands([], [x], shared) if _is_last(node, x, 0) else None


def _is_last(node: ir.Node, value: ir.Value, default: int) -> bool:
    return node.attributes.get_int("axis", default) in (-1, rank(value) - 1)


def _same_rows(dims: list[Dim], result: list[Dim]) -> bool:
    return None not in dims[:-1] and dims[:-1] == result[:-1]


def _is_shared(value: ir.Value) -> bool:
    """Whether an operand has no rows of its own, but is broadcast over all."""
    return all(dim == 1 for dim in dims_of(value)[:-1])


def _is_vector(value: ir.Value) -> bool:
    return rank(value) <= 1


_Reader = Callable[[ir.Node], Operands | None]

_READERS: Mapping[str, _Reader] = {
    **dict.fromkeys(("MatMul", "Gemm", f"{DOMAIN}.{INT8_MATMUL}", f"{CONTRIB}.MatMulNBits"), _matmul),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(AXES, _along_axes),
    **dict.fromkeys(_NORMS, _norm),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "Concat": _concat,
    "Split": _split,
}


def _reader(node: ir.Node) -> _Reader | None:
    return _READERS.get(full_name(node))
