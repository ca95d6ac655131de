"""The nodes that expand a 4-bit matrix to int8 where it is multiplied.

The graph reads half the bytes from the file and the page cache, and the int8 matrix lives until its last reader ran.
onnxruntime's CPU build has for 8-bit numbers ``QLinearMul`` and ``QLinearAdd``, which use vector instructions and
round. Its ``BitwiseAnd`` takes five times as long, so the halves of a byte are separated by rounding. onnxruntime does
not compute these operators when it loads a graph, so constants stay in 4 bits, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import initializer_array, known_ints
from edgepeft_export.graph.edit import replace_node
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.int4 import EIGHTHS, Int4Matrix, Int8Array
from edgepeft_export.graph.match import operand, present, producer_of
from edgepeft_export.graph.shapes import Dim, dims_of
from edgepeft_export.opset.domains import CONTRIB, DOMAIN

EXPAND = "Int4Expand"
"""``(bytes, steps, offsets?) -> [inputs, outputs]``, int8, of the tensors of an ``Int4Matrix``.

Attribute ``inputs``: without the padding.
"""


@dataclass(frozen=True)
class Expansion:
    """The operands of an ``EXPAND``, or of the nodes that it was lowered to."""

    bytes: ir.Value
    steps: ir.Value
    offsets: ir.Value | None
    inputs: int

    @property
    def group(self) -> int:
        """Inputs per step."""
        size = dims_of(self.bytes)[1]
        assert isinstance(size, int)
        return size

    def matrix(self, scale: ir.Value) -> Int4Matrix:
        """The matrix with that scale; all tensors are stored."""
        code, steps = _content(self.bytes), _content(self.steps)
        offsets = None if self.offsets is None else _content(self.offsets)
        return Int4Matrix(code, steps, offsets, initializer_array(scale).astype(np.float32).ravel(), self.inputs)


def _content(value: ir.Value) -> Int8Array:
    return initializer_array(value).astype(np.int8, copy=False)


def stored(matrix: Int4Matrix, name: str, store: Callable[[str, Int8Array], ir.Value]) -> Expansion:
    """The operands of a matrix, kept by ``store``, which makes an initializer of a name and a content."""
    offsets = None if matrix.offsets is None else store(f"{name}.offsets", matrix.offsets)
    return Expansion(store(name, matrix.bytes), store(f"{name}.steps", matrix.steps), offsets, matrix.inputs)


def overwritten(old: Expansion, matrix: Int4Matrix) -> bool:
    """Write a matrix over the stored one, under its names. Returns whether that one had room for its offsets."""
    offsets = matrix.offsets if old.offsets is None or matrix.offsets is not None else np.zeros_like(matrix.steps)
    if old.offsets is None and offsets is not None:
        return False
    for value, array in ((old.bytes, matrix.bytes), (old.steps, matrix.steps), (old.offsets, offsets)):
        if value is not None and array is not None:
            value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    return True


def expand(emit: Emitter, expansion: Expansion) -> ir.Value:
    """Append an ``EXPAND``."""
    operands = (expansion.bytes, expansion.steps, expansion.offsets)
    made = emit.op(EXPAND, *operands, domain=DOMAIN, inputs=expansion.inputs)
    made.shape = ir.Shape([expansion.inputs, dims_of(expansion.bytes)[2]])
    return made


def expansion_of(value: ir.Value | None) -> Expansion | None:
    """The tensor that ``value`` is expanded from; ``None`` where it is not. The nodes may have been lowered."""
    node = producer_of(value, EXPAND)
    if node is not None:
        return Expansion(operand(node), operand(node, 1), present(node, 2), node.attributes["inputs"].as_int())
    return None if value is None else _lowered(value)


def is_expanded(value: ir.Value) -> bool:
    """Whether the codes of ``value`` become a matrix of twice its bytes."""
    return any(use.node.op_type == EXPAND and use.idx == 0 for use in value.uses())


def _lowered(value: ir.Value) -> Expansion | None:
    cut = producer_of(value, "Slice")
    shaped = producer_of(value if cut is None else cut.inputs[0], "Reshape")
    joined = None if shaped is None else shaped.inputs[0]
    total = producer_of(joined, "QLinearAdd")
    halves = producer_of(joined if total is None else total.inputs[0], "Concat")
    product = None if halves is None else producer_of(halves.inputs[0], "QLinearMul")
    bits = None if product is None else producer_of(product.inputs[0], "QLinearAdd")
    steps = None if product is None else producer_of(product.inputs[3], "Slice")
    sizes = known_ints(present(cut, 2) if cut is not None else present(shaped, 1) if shaped is not None else None)
    if bits is None or steps is None or not sizes:
        return None
    return Expansion(operand(bits), operand(steps), None if total is None else operand(total, 3), sizes[0])


def lower_expansion(node: ir.Node, constants: Emitter) -> None:
    """Replace an ``EXPAND`` by kernels of onnxruntime. The emitter only makes constants."""
    lowering = _Lowering(node, constants)
    joined = lowering.add("Concat", lowering.halves(), lowering.padded, axis=0)
    if lowering.read.offsets is not None:
        one = lowering.unit(1.0)
        joined = lowering.add("QLinearAdd", [joined, *one, lowering.read.offsets, *one, *one], lowering.padded, CONTRIB)
    groups, group, outputs = lowering.padded
    assert isinstance(groups, int) and isinstance(group, int)
    shape = constants.ints(groups * group, outputs if isinstance(outputs, int) else -1)
    if groups * group == lowering.read.inputs:
        replace_node(node, ir.node("Reshape", [joined, shape], name=f"{node.name}/Reshape"))
        return
    flat = lowering.add("Reshape", [joined, shape], [groups * group, outputs])
    ends = [constants.ints(number) for number in (0, lowering.read.inputs, 0)]
    replace_node(node, ir.node("Slice", [flat, *ends], name=f"{node.name}/Slice"))


class _Lowering:
    """Writes the nodes of one expansion before it."""

    def __init__(self, node: ir.Node, constants: Emitter) -> None:
        read = expansion_of(node.outputs[0])
        assert read is not None
        self.read, self._node, self._constants, self._count = read, node, constants, 0
        pairs, group, outputs = dims_of(read.bytes)
        assert isinstance(pairs, int)
        self._pairs = pairs
        self.padded: list[Dim] = [2 * pairs, group, outputs]

    def halves(self) -> list[ir.Value]:
        """The int8 weights of both halves of the groups, without their offsets.

        A byte is ``16 high + low + 8``, so ``high`` is ``(2 byte - 15) / 32``, rounded, which is never halfway.
        """
        codes, one = self.read.bytes, self.unit(1.0)
        high = self._total([codes, *self.unit(2.0)], [self._int8(-15), *one], self.unit(32.0))
        low = self._total([codes, *one], [high, *self.unit(-16.0)], one)
        return [self._times_steps(0, [low, *self.unit(1.0, 8)]), self._times_steps(1, [high, *one])]

    def _total(self, left: list[ir.Value], right: list[ir.Value], unit: tuple[ir.Value, ir.Value]) -> ir.Value:
        return self.add("QLinearAdd", [*left, *right, *unit], dims_of(self.read.bytes), CONTRIB)

    def _times_steps(self, half: int, codes: list[ir.Value]) -> ir.Value:
        ends = [self._constants.ints(number) for number in (half * self._pairs, (half + 1) * self._pairs, 0)]
        steps = self.add("Slice", [self.read.steps, *ends], [self._pairs, 1, self.padded[2]])
        operands = [*codes, steps, *self.unit(1 / EIGHTHS), *self.unit(1.0)]
        return self.add("QLinearMul", operands, dims_of(self.read.bytes), CONTRIB)

    def unit(self, size: float, zero: int = 0) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of an operand."""
        return self._constants.constant(np.array(size, np.float32)), self._int8(zero)

    def _int8(self, number: int) -> ir.Value:
        return self._constants.constant(np.array(number, np.int8))

    def add(
        self, op_type: str, inputs: list[ir.Value], shape: list[Dim], domain: str = "", **attributes: int
    ) -> ir.Value:
        """Put a node before the expansion, and return its output."""
        self._count += 1
        name = f"{self._node.name}/{op_type}.{self._count}"
        new = ir.node(op_type, inputs, attributes, domain=domain, name=name)
        self._node.prepend(new)
        new.outputs[0].type, new.outputs[0].shape = ir.TensorType(ir.DataType.INT8), ir.Shape(shape)
        return new.outputs[0]
