"""Linear layers of a graph: nodes that multiply by a matrix computed from an initializer.

A ``LinearSite`` knows which initializer the matrix is, how it is stored, the matrix as floats, and how to replace
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.constants import initializer_array, is_frozen, new_initializer, source_initializer
from edgepeft_export.graph.custom_ops import CONTRIB, DOMAIN, INT8_MATMUL
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.expansion import Expansion, expand, expansion_of, overwritten, stored
from edgepeft_export.graph.int4 import to_int4
from edgepeft_export.graph.match import only_reader, operand, present, producer_of
from edgepeft_export.graph.rounding import (
    column_sums,
    from_blocks,
    to_blocks,
    to_int8,
)
from edgepeft_export.graph.row_rounding import added, corrected, rows_of
from edgepeft_export.graph.shapes import static_dims
from edgepeft_export.graph.smoothing import before_smoothing

Matrix = NDArray[np.float64]
Storage = Literal["float", "int8", "int4", "blocks", "other"]

_BIAS = {
    ("", "MatMul"): None,
    ("", "Gemm"): 2,
    ("", "Conv"): 2,
    (DOMAIN, INT8_MATMUL): 4,
    (CONTRIB, "MatMulIntegerToFloat"): 6,
    (CONTRIB, "MatMulNBits"): 5,
}
"""The operators of a ``LinearSite``, and the input that each adds to its result."""

MATMULS = frozenset(
    {op_type for _, op_type in _BIAS} | {"ConvTranspose", "Einsum", "MatMulInteger", "ConvInteger", "FusedMatMul"}
)
"""Every operator that sums products over an axis."""


@dataclass(frozen=True)
class LinearSite:
    """A node that multiplies by a constant matrix: of a ``Conv``, by a kernel.

    Attributes:
        node: ``y = x W``, perhaps with a bias.
        weight: the initializer that W is, or is computed from.
        inputs, outputs: the sizes of W: columns of x and of y, or channels of a convolution.
        kernel: sizes of a convolution's kernel along its axes.
        transposed: whether the stored array is [outputs, inputs].
        storage: how W is stored. ``float``: as floats; ``int8``: as integers with a scale per channel; ``int4``: so
            after an expansion; ``blocks``: as those of ``MatMulNBits``; ``other``: in a way that ``matrix`` does
            not read.
        scale: the initializer of the scales of integers.
    """

    node: ir.Node
    weight: ir.Value
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    transposed: bool
    storage: Storage
    scale: ir.Value | None = None

    @classmethod
    def of(cls, node: ir.Node | None, *, allow_shared: bool = True) -> LinearSite | None:
        """The linear layer that ``node`` is, ``None`` where it is none.

        Args:
            allow_shared: also where the initializer has other readers.
        """
        if node is None or (node.domain, node.op_type) not in _BIAS or len(node.inputs) < 2:
            return None
        if rows_of(node.inputs[0]) is not None and _scaled_by_row(node) is None:
            return None
        expansion = expansion_of(node.inputs[1])
        weight = source_initializer(node.inputs[1] if expansion is None else expansion.bytes)
        if weight is None or source_initializer(node.inputs[0]) is not None:
            return None
        sizes = _sizes(node, weight)
        if sizes is None or node.outputs[0].dtype not in (ir.DataType.FLOAT, None):
            return None
        if not allow_shared and len(weight.uses()) > 1:
            return None
        storage, scale = _storage(node, weight)
        return cls(node, weight, sizes[0], sizes[1], tuple(sizes[2:]), _is_transposed(node), storage, scale)

    @property
    def x(self) -> ir.Value:
        """The input, before it is smoothed and rounded."""
        smoothed = before_smoothing(self._unrounded) if self.is_quantized else None
        return self._unrounded if smoothed is None else smoothed[0]

    @property
    def _unrounded(self) -> ir.Value:
        x = operand(self.node)
        if self.node.op_type != "MatMulIntegerToFloat":
            return x
        if (rows := rows_of(x)) is not None:
            return rows.x
        rounded = producer_of(x, "DynamicQuantizeLinear")
        return x if rounded is None else operand(rounded)

    @property
    def _reciprocals(self) -> Matrix | float:
        """The factors of the rows of the stored matrix: [inputs, 1], or 1."""
        smoothed = before_smoothing(self._unrounded) if self.is_quantized else None
        return 1.0 if smoothed is None else initializer_array(smoothed[1]).astype(np.float64)[:, None]

    @property
    def result(self) -> ir.Value:
        """``x W``, with the bias that the node adds. Where rows of x were rounded, the product times their steps."""
        return _scaled_by_row(self.node) or self.node.outputs[0]

    @property
    def bias(self) -> ir.Value | None:
        """The bias that the node itself adds."""
        index = _BIAS[self.node.domain, self.node.op_type]
        return None if index is None else present(self.node, index)

    @property
    def is_conv(self) -> bool:
        """Whether the matrix is a kernel."""
        return self.node.op_type == "Conv"

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(self.node.attributes.get_int("group", 1))

    @property
    def is_quantized(self) -> bool:
        """Whether the matrix is stored as integers."""
        return self.storage != "float"

    @property
    def _alpha(self) -> float:
        return float(self.node.attributes.get_float("alpha", 1.0)) if self.node.op_type == "Gemm" else 1.0

    @property
    def channels(self) -> int:
        """The axis of the stored array along which outputs lie, and the scales of integers."""
        return 0 if self.transposed or self.is_conv else 1

    def matrix(self) -> Matrix:
        """W as floats: [inputs, outputs], or [outputs, inputs / groups, *kernel] of a convolution."""
        stored = initializer_array(self.weight)
        if self.storage == "blocks":
            return from_blocks(stored.astype(np.uint8), self._scales(stored.shape[:2]), self.inputs).T
        if self.storage == "int4":
            assert self._expansion is not None and self.scale is not None
            return self._expansion.matrix(self.scale).matrix().astype(np.float64) * self._reciprocals
        matrix = stored.astype(np.float64)
        if self.storage == "int8":
            shape = [1] * matrix.ndim
            shape[self.channels] = -1
            matrix = matrix * self._scales(tuple(shape))
        return self._alpha * (matrix.T if self.transposed else matrix) * self._reciprocals

    @property
    def _expansion(self) -> Expansion | None:
        return expansion_of(self.node.inputs[1])

    def _scales(self, shape: tuple[int, ...]) -> Matrix:
        assert self.scale is not None
        return initializer_array(self.scale).astype(np.float64).reshape(shape)

    def with_matrix(self, matrix: Matrix) -> None:
        """Let the node multiply by another matrix of this shape, stored like this one. Other readers keep theirs.

        A new 4-bit one is expanded by an operator of our own, at the end of the graph, which has to be lowered later.
        """
        matrix = matrix / self._reciprocals
        array = np.ascontiguousarray(matrix.T if self.transposed else matrix) / self._alpha
        if self.storage == "float":
            self._store(self.weight, array.astype(initializer_array(self.weight).dtype))
        elif self.storage == "blocks":
            four = to_blocks(array.astype(np.float32), int(self.node.attributes["block_size"].as_int()))
            self._store_quantized(four.values, four.scales)
        elif self.storage == "int4":
            self._store_expanded(array.astype(np.float32))
        else:
            eight = to_int8(array.astype(np.float32), self.channels)
            self._store_sums(column_sums(eight.values, eight.scale, self.channels))
            self._store_quantized(eight.values, eight.scale)

    def _store_quantized(self, integers: NDArray[np.generic], scales: NDArray[np.float32]) -> None:
        assert self.scale is not None
        self._own_operand()
        self._store(self.weight, integers)
        self._store(self.scale, scales.reshape(initializer_array(self.scale).shape))

    def _store_expanded(self, matrix: NDArray[np.float32]) -> None:
        """Store a matrix to expand; where the old one has other readers, as a new one."""
        graph, old = self.node.graph, self._expansion
        assert isinstance(graph, ir.Graph) and old is not None and self.scale is not None
        four = to_int4(matrix, old.group)
        self._store(self.scale, four.scale)
        self._store_sums(column_sums(four.integers(), four.scale, 1))
        if len(operand(self.node, 1).uses()) == 1 and overwritten(old, four):
            return
        new = stored(four, f"{old.bytes.name}.merged", lambda name, array: new_initializer(graph, name, array))
        self.node.replace_input_with(1, expand(Emitter(graph, scope=str(self.node.name)), new))

    def _store_sums(self, array: NDArray[np.float32]) -> None:
        """Let the correction of the product, where there is one, read the sums of another matrix."""
        old = _sums(self.node)
        if old is None:
            return
        if len(old.uses()) == 1:
            old.const_value = ir.tensor(array, name=old.name)
            return
        assert isinstance(self.node.graph, ir.Graph)
        new = new_initializer(self.node.graph, f"{old.name}.merged", array)
        outer = next(use.node for use in old.uses() if self.node.outputs[0] in _read_with(use.node))
        outer.replace_input_with(outer.inputs.index(old), new)

    def _own_operand(self) -> None:
        """Give this node its own copy of the node between the weight and it, where there is a shared one."""
        operand = self.node.inputs[1]
        node = operand.producer() if operand is not None else None
        if node is not None and len(node.outputs[0].uses()) > 1:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            copy = ir.node(node.op_type, list(node.inputs), attributes)
            node.append(copy)
            self.node.replace_input_with(1, copy.outputs[0])

    def _store(self, old: ir.Value, array: NDArray[np.generic]) -> None:
        """Let this node read other content instead of ``old``, under its name where that has no other reader."""
        if len(old.uses()) == 1:
            old.const_value = ir.tensor(np.ascontiguousarray(array), name=old.name)
            return
        graph, operand = self.node.graph, self.node.inputs[1]
        assert isinstance(graph, ir.Graph)
        new = new_initializer(graph, f"{old.name}.merged", array)
        for node in (self.node, operand.producer() if operand is not None else None):
            for index, value in enumerate(node.inputs if node is not None else ()):
                if value is old and node is not None:
                    node.replace_input_with(index, new)


def _sizes(node: ir.Node, weight: ir.Value) -> list[int] | None:
    """Inputs, outputs and the kernel's sizes of a matrix."""
    if node.op_type == "MatMulNBits":
        return [node.attributes["K"].as_int(), node.attributes["N"].as_int()]
    dims = _operand_dims(node, weight)
    if dims is None:
        return None
    if node.op_type == "Conv":
        return [dims[1] * node.attributes.get_int("group", 1), dims[0], *dims[2:]] if len(dims) > 2 else None
    if len(dims) != 2 or node.attributes.get_int("transA", 0) != 0:
        return None
    return dims[::-1] if node.attributes.get_int("transB", 0) != 0 else dims


def _operand_dims(node: ir.Node, weight: ir.Value) -> list[int] | None:
    """The shape of the matrix operand, also where shapes have not been inferred since it was written."""
    operand, dims = node.inputs[1], static_dims(weight)
    inferred = static_dims(operand) if operand is not None else None
    if inferred is not None or dims is None:
        return inferred
    if (expansion := expansion_of(operand)) is not None:
        return [expansion.inputs, dims[2]]
    if producer_of(operand, "Transpose") is not None:
        return dims[::-1] if len(dims) == 2 else None
    return dims if producer_of(operand, "DequantizeLinear") is not None else None


def _is_transposed(node: ir.Node) -> bool:
    if node.op_type == "MatMulIntegerToFloat":
        return producer_of(node.inputs[1], "Transpose") is not None
    return node.op_type == "MatMulNBits" or bool(node.attributes.get_int("transB", 0))


def _scaled_by_row(node: ir.Node) -> ir.Value | None:
    """The product times the steps of the rows of its input."""
    rows = rows_of(node.inputs[0])
    if rows is None:
        return None
    product, moved = node.outputs[0], corrected(node.outputs[0], rows)
    scaled = only_reader(added(product) or (product if moved is None else moved[0]), "Mul")
    return scaled.outputs[0] if scaled is not None and rows.step in scaled.inputs else None


def _read_with(node: ir.Node) -> list[ir.Value | None]:
    """The other inputs of the readers of a node's result."""
    return [value for use in node.outputs[0].uses() for value in use.node.inputs]


def _sums(node: ir.Node) -> ir.Value | None:
    """The columns' sums by which the product is corrected, where rows of the input have a zero point each."""
    rows = rows_of(node.inputs[0]) if node.op_type == "MatMulIntegerToFloat" else None
    moved = None if rows is None else corrected(node.outputs[0], rows)
    return None if moved is None else moved[1]


def _storage(node: ir.Node, weight: ir.Value) -> tuple[Storage, ir.Value | None]:
    """How a matrix is stored, and its scales. Integers only as edgepeft itself stores them, without zero points."""
    operand, kind = node.inputs[1], node.op_type
    if operand is weight and not node.domain and weight.dtype is not None and weight.dtype.is_floating_point():
        zero = kind == "Gemm" and node.attributes.get_float("alpha", 1.0) == 0.0
        return ("other" if zero else "float"), None
    if kind == "MatMulNBits":
        extra = any(present(node, index) is not None for index in (3, 4, 5))
        four = node.attributes.get_int("bits", 4) == 4 and not extra
        return _with_scale("blocks", node.inputs[2], plain=four)
    if kind == "MatMulIntegerToFloat":
        rounded = producer_of(node.inputs[0], "DynamicQuantizeLinear") or rows_of(node.inputs[0])
        plain = rounded is not None and present(node, 5) is None and weight.dtype == ir.DataType.INT8
        return _with_scale("int8" if expansion_of(operand) is None else "int4", node.inputs[3], plain=plain)
    dequantize = producer_of(operand, "DequantizeLinear")
    if kind == "Conv" and dequantize is not None and dequantize.inputs[0] is weight:
        plain = weight.dtype == ir.DataType.INT8 and dequantize.attributes.get_int("axis", 1) == 0
        return _with_scale("int8", dequantize.inputs[1], plain=plain and present(dequantize, 2) is None)
    return "other", None


def _with_scale(storage: Storage, scale: ir.Value | None, *, plain: bool) -> tuple[Storage, ir.Value | None]:
    return (storage, scale) if plain and is_frozen(scale) else ("other", None)
