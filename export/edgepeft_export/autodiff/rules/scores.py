"""Crosses the matmul of a model's scores, whose gradient has one large entry per row and many small ones.

In general the gradient is rounded to three digits of 7 bits, of which each is a product of its own.

The gradient of a cross-entropy is probabilities times a factor of the row, and one more entry, at the label. The
label's entry crosses apart, exactly, by its row of the transposed matrix. Then the largest of what is left is a few
percent of a trained model's entry at the label, nothing is negative, and two digits of 7 bits are as fine as three of
the whole gradient.

Many probabilities are below half a step and would all round to zero, although their sum counts. An offset per column of
up to half a step, the fraction of a multiple of its scale, lets a part of them round up: their sum keeps its
expectation (dither: Schuchman, 1964).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.custom_ops import DOMAIN, INT8_ROWS, NO_GRADIENT, TRANSPOSED, int8_matmul
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, other_input, present, producer_of
from edgepeft_export.graph.rounding import NARROW_MIDDLE
from edgepeft_export.graph.row_rounding import SMALLEST
from edgepeft_export.graph.shapes import dims_of, rank, repeated

_DIGIT = 2.0 * NARROW_MIDDLE
"""By how much a digit is finer than the one before, and the largest first digit: 128 · (127 + 127) < 2¹⁵."""

_FRACTIONS = 4096.0
"""Multiples of the scales, of whose fractions the offsets are made: neighbours have unrelated ones."""


@dataclass(frozen=True)
class _Entropy:
    """The gradient ``factor · probabilities``, with ``update`` added at ``label``.

    Attributes:
        probabilities: [rows, classes], none negative, up to a factor per row.
        factor: [rows, 1].
        label: int64 [rows, 1].
        update: [rows, 1].
    """

    probabilities: ir.Value
    factor: ir.Value
    label: ir.Value
    update: ir.Value


def any_scores(node: ir.Node, scaled: ir.Value, zero_point: ir.Value | None, emit: Emitter) -> ir.Value:
    """The gradient of the input of a matmul that computes scores, in three digits.

    Most entries are probabilities far below the largest entry: with two digits many of them round to zero, and the
    gradient loses their sum.

    Args:
        node: an ``INT8_MATMUL``.
        scaled: the gradient of its result times the scales of the matrix, [..., classes].
        zero_point: of the matrix.
        emit: appends the nodes.
    """
    last = emit.ints(-1)
    largest, smallest = (emit.op(kind, scaled, last, keepdims=1) for kind in ("ReduceMax", "ReduceMin"))
    size = emit.op("Max", largest, emit.op("Neg", smallest), emit.scalar(SMALLEST, like=scaled))
    step = emit.op("Mul", size, emit.scalar(1 / NARROW_MIDDLE, like=scaled))
    first = emit.op("Div", scaled, step)
    first.shape = scaled.shape
    digits = [_Digit(first, 1.0, NARROW_MIDDLE, 1.0, emit)]
    second = emit.op("Mul", digits[0].rest(), emit.scalar(_DIGIT, like=scaled))
    second.shape = scaled.shape
    digits.append(_Digit(second, 1.0, NARROW_MIDDLE, 1 / _DIGIT, emit))
    digits.append(_Digit(digits[1].rest(), 1 / _DIGIT, NARROW_MIDDLE, 1 / _DIGIT**2, emit))
    return emit.op("Mul", _product(node, digits, NARROW_MIDDLE, zero_point, emit), step)


def cross_entropy(node: ir.Node, dy: ir.Value, emit: Emitter) -> ir.Value | None:
    """The gradient of the input of a matmul that computes scores; ``None`` where ``dy`` is not that of a cross-entropy.

    Args:
        node: an ``INT8_MATMUL`` whose zero point is 0.
        dy: [rows, classes].
        emit: appends the nodes.
    """
    found = _entropy(dy)
    if found is None:
        return None
    at_label = emit.op("GatherElements", found.probabilities, found.label, axis=1)
    nothing = emit.op("Mul", at_label, emit.scalar(0.0, like=dy))
    others = emit.op("ScatterElements", found.probabilities, found.label, nothing, axis=1)
    rest = emit.op("Mul", _others(node, others, emit), found.factor)
    entry = emit.op("Add", emit.op("Mul", at_label, found.factor), found.update)
    return emit.op("Add", rest, _row_of_label(node, found.label, entry, emit))


def _entropy(dy: ir.Value) -> _Entropy | None:
    total = producer_of(dy, "Add")
    if total is None or dy.shape is None or rank(dy) != 2:
        return None
    for value in total.inputs:
        scatter, product = producer_of(value, "ScatterElements"), other_input(total, value) if value else None
        if scatter is None or product is None or not _adds_to_zeros(scatter):
            continue
        for index, probabilities in enumerate(_factors(product)):
            factor = _factors(product)[1 - index]
            if producer_of(probabilities, "Exp") is not None and _is_column(factor):
                return _Entropy(probabilities, factor, operand(scatter, 1), operand(scatter, 2))
    return None


def _adds_to_zeros(scatter: ir.Node) -> bool:
    along = scatter.attributes.get_int("axis", 0) == 1 and scatter.attributes.get_string("reduction", "none") == "add"
    label = operand(scatter, 1)
    one = label.shape is None or dims_of(label)[-1] in (1, None)
    return along and one and producer_of(scatter.inputs[0], "ConstantOfShape") is not None


def _factors(product: ir.Value) -> list[ir.Value]:
    node = producer_of(product, "Mul")
    return [] if node is None else [operand(node, index) for index in range(2)]


def _is_column(value: ir.Value) -> bool:
    return value.shape is not None and rank(value) == 2 and dims_of(value)[-1] == 1


def _others(node: ir.Node, values: ir.Value, emit: Emitter) -> ir.Value:
    """The product of numbers that are not negative, in two digits of which neither is: both have the zero point 0.

    The first digit is the number minus a half, rounded, so the rest lies between minus and plus a half. The zero point
    in the middle of its range adds the half again: ``first + second / 128``.
    """
    scale = operand(node, 2)
    scaled = emit.op("Mul", values, scale)
    size = emit.op("Max", emit.op("ReduceMax", scaled, emit.ints(-1), keepdims=1), emit.scalar(SMALLEST, like=scaled))
    step = emit.op("Mul", size, emit.scalar(1 / _DIGIT, like=scaled))
    lower = emit.scalar(-0.5, like=scale)
    if scale.shape is None or rank(scale) > 0:
        lower = emit.op("Add", _offsets(scale, emit), lower)
    units = emit.op("Add", emit.op("Div", scaled, step), lower)
    units.shape = values.shape
    first = _Digit(units, 1.0, 0, 1.0, emit)
    second = _Digit(first.rest(), 1 / _DIGIT, NARROW_MIDDLE, 1 / _DIGIT, emit)
    return emit.op("Mul", _product(node, [first, second], 0, None, emit), step)


def _offsets(scale: ir.Value, emit: Emitter) -> ir.Value:
    """A number per column between minus and plus half a step of the second digit."""
    largest = emit.op("ReduceMax", scale, keepdims=0)
    multiples = emit.op("Mul", emit.op("Div", scale, largest), emit.scalar(_FRACTIONS, like=scale))
    fractions = emit.op("Sub", multiples, emit.op("Floor", multiples))
    centred = emit.op("Sub", fractions, emit.scalar(0.5, like=scale))
    return emit.op("Mul", centred, emit.scalar(1 / _DIGIT, like=scale))


@dataclass(frozen=True)
class _Digit:
    """Numbers, rounded to whole steps.

    Attributes:
        numbers: float32.
        step: between two integers.
        zero: the integer of the number 0.
        factor: of the digit in the sum.
        emit: appends the nodes.
    """

    numbers: ir.Value
    step: float
    zero: int
    factor: float
    emit: Emitter

    @cached_property
    def integers(self) -> ir.Value:
        """The digit in uint8."""
        found = self.emit.op("QuantizeLinear", self.numbers, *self._grid())
        found.type, found.shape = ir.TensorType(ir.DataType.UINT8), self.numbers.shape
        return found

    def rest(self) -> ir.Value:
        """The remainders after the digit, up to half a step."""
        # "Round" is slower.
        rounded = self.emit.op("DequantizeLinear", self.integers, *self._grid())
        rounded.type, rounded.shape = self.numbers.type, self.numbers.shape
        rest = self.emit.op("Sub", self.numbers, rounded)
        rest.shape = self.numbers.shape
        return rest

    def _grid(self) -> tuple[ir.Value, ir.Value]:
        return self.emit.scalar(self.step, like=self.numbers), self.emit.constant(np.array(self.zero, np.uint8))


def _product(
    node: ir.Node, digits: Sequence[_Digit], middle: int, zero_point: ir.Value | None, emit: Emitter
) -> ir.Value:
    """The sum of the digits' products; ``middle`` is their zero point in it.

    One product for all, so that a matrix that is an input is arranged for the kernel once.
    """
    stacked = emit.op("Concat", *(digit.integers for digit in digits), axis=0)
    stacked.shape = repeated(digits[0].numbers, len(digits))
    one = emit.scalar(1.0, like=digits[0].numbers)
    inputs = (stacked, operand(node, 1), one, zero_point, None, present(node, TRANSPOSED))
    product = int8_matmul(emit, *inputs, trans_b=_swapped(node), rounding="given", gradient=NO_GRADIENT, middle=middle)
    product.dtype = ir.DataType.FLOAT
    parts = emit.ops("Split", product, axis=0, num_outputs=len(digits), outputs=len(digits))
    factors = [emit.scalar(digit.factor, like=product) for digit in digits]
    return emit.add([parts[0], *(emit.op("Mul", *pair) for pair in zip(parts[1:], factors[1:], strict=True))])


def _row_of_label(node: ir.Node, label: ir.Value, entry: ir.Value, emit: Emitter) -> ir.Value:
    """The product of the entries at the labels, [rows, 1], by a row of the transposed matrix each."""
    row = emit.op("Squeeze", label, emit.ints(1))
    inputs = (row, operand(node, 1), present(node, TRANSPOSED))
    weights = emit.op(INT8_ROWS, *inputs, domain=DOMAIN, transB=_swapped(node))
    weights.dtype = ir.DataType.FLOAT
    scale = operand(node, 2)
    if scale.shape is None or rank(scale) > 0:
        scale = emit.op("Gather", scale, label)
    return emit.op("Mul", weights, emit.op("Mul", entry, scale))


def _swapped(node: ir.Node) -> int:
    """The attribute ``transB`` of the gradient's product, which reads the same matrix transposed."""
    return 1 - int(node.attributes.get_int("transB", 0))
