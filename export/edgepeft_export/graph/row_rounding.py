"""Rounds the rows of an activation or a gradient to 8 bits, each with a scale of its own.

``DynamicQuantizeLinear`` has one scale for the whole tensor, with which a row of a thousandth of another's size rounds
to zero. Here a row r is ``step_r · (integers_r - zero_r)``.

The range of an activation lies between its smallest and its largest element, which may be one large outlier of one
sign, so its zero point differs from row to row: ``zero_r = -min(r) / step_r``, and a matmul corrects its product by
``zero_r`` times the sums of the matrix's columns. A gradient has as many large elements of one sign as of the other:
its range is symmetric, and its zero point a constant.

``QuantizeLinear`` along the axis of rows divides, rounds and converts
in one pass over the tensor. With two reductions that makes three passes; a zero point adds two to the one over the
product.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import other_input, producer_of
from edgepeft_export.graph.rounding import MIDDLE, STEPS
from edgepeft_export.graph.shapes import Dim, dims_of, rank

SMALLEST = float(2.0**-100)
"""Rows whose range is smaller round to zero. A step of zero would divide 0 by 0."""


@dataclass(frozen=True)
class RoundedRows:
    """``step · (integers - zero)`` is the activation.

    Attributes:
        x: The activation.
        integers: uint8, of the activation's shape.
        step: float32, [..., 1].
        negative_zero: float32, [..., 1], whole numbers: ``-zero``. ``None`` where the zero point is a constant.
    """

    x: ir.Value
    integers: ir.Value
    step: ir.Value
    negative_zero: ir.Value | None


@dataclass
class Shapes:
    """Vectors that roundings of one graph share, by the dimensions of their tensors.

    Attributes:
        whole: shapes.
        zeros: the zero point of each row, where it is a constant: by that, too.
    """

    whole: dict[tuple[Dim, ...], ir.Value] = field(default_factory=dict)
    zeros: dict[tuple[int, tuple[Dim, ...]], ir.Value] = field(default_factory=dict)


def round_rows(x: ir.Value, node: ir.Node, emit: Emitter, shapes: Shapes, *, middle: int | None) -> RoundedRows:
    """Round ``x`` to integers of 0 to ``STEPS``; the new nodes come before ``node``.

    Args:
        x: the activation.
        node: reads it.
        emit: only makes the constants.
        shapes: of earlier nodes of the graph.
        middle: the zero point of a symmetric range, of twice as many steps; ``None`` for a zero point per row.
    """
    before = _Before(node, x, shapes)
    last, small = emit.ints(-1), emit.scalar(SMALLEST, like=x)
    largest, smallest = (before.column(kind, x, last, keepdims=1) for kind in ("ReduceMax", "ReduceMin"))
    if middle is not None:
        size, count = before.column("Max", largest, before.column("Neg", smallest), small), middle
    else:  # zero is in the range; one step is left, as the zero point and an element may both be rounded up
        below = before.column("Neg", before.column("Min", smallest, emit.scalar(0.0, like=x)))
        size, count = before.column("Max", before.column("Add", largest, below), below, small), STEPS - 1
    step = before.column("Mul", size, emit.scalar(1 / count, like=x))
    flat = before.flat(step, emit)
    if middle is not None:
        negative_zero = None
        zero = before.middles(middle, flat, emit)
    else:
        rounded = before.column("Round", before.column("Div", below, step))
        negative_zero = before.column("Neg", rounded)
        zero = before.flat(before.add("Cast", rounded, to=ir.DataType.UINT8.value), emit)
    return RoundedRows(x, before.integers(x, flat, zero, emit), step, negative_zero)


def round_finely(x: ir.Value, node: ir.Node, emit: Emitter) -> RoundedRows:
    """Round ``x`` to whole steps of its rows and to the rest, symmetric, the one after the other along the first axis.

    ``step · (first + second / (2 · MIDDLE))`` is the activation, where both are the integers without their zero point.
    """
    before = _Before(node, x, Shapes())
    largest, smallest = (before.column(kind, x, emit.ints(-1), keepdims=1) for kind in ("ReduceMax", "ReduceMin"))
    size = before.column("Max", largest, before.column("Neg", smallest), emit.scalar(SMALLEST, like=x))
    step = before.column("Mul", size, emit.scalar(1 / MIDDLE, like=x))
    units = before.add("Div", x, step)
    one, fine = emit.scalar(1.0, like=x), emit.scalar(0.5 / MIDDLE, like=x)
    zero = emit.constant(np.array(MIDDLE, np.uint8))
    whole = before.add("QuantizeLinear", units, one, zero)
    rounded = before.add("DequantizeLinear", whole, one, zero)  # "Round" is slower
    rest = before.add("Sub", units, rounded)
    for value in (units, rounded, rest):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), x.shape
    small = before.add("QuantizeLinear", rest, fine, zero)
    integers = before.add("Concat", whole, small, axis=0)
    integers.type = ir.TensorType(ir.DataType.UINT8)
    return RoundedRows(x, integers, step, None)


def rows_of(integers: ir.Value | None) -> RoundedRows | None:
    """The value that this module rounded to ``integers``; ``None`` where it did not."""
    if (joined := producer_of(integers, "Concat")) is not None and integers is not None:
        quantize = producer_of(joined.inputs[0], "QuantizeLinear")
        divide = None if quantize is None else producer_of(quantize.inputs[0], "Div")
        x, step = (None, None) if divide is None else divide.inputs
        return None if x is None or step is None else RoundedRows(x, integers, step, None)
    reshape = producer_of(integers, "Reshape")
    quantize = producer_of(integers if reshape is None else reshape.inputs[0], "QuantizeLinear")
    flat = None if quantize is None else producer_of(quantize.inputs[1], "Reshape")
    if integers is None or quantize is None or flat is None or producer_of(flat.inputs[0], "Mul") is None:
        return None
    rows = producer_of(quantize.inputs[0], "Reshape") if reshape is not None else None
    x, step = quantize.inputs[0] if rows is None else rows.inputs[0], flat.inputs[0]
    return None if x is None or step is None else RoundedRows(x, integers, step, _negative_zero(quantize))


def _negative_zero(quantize: ir.Node) -> ir.Value | None:
    """The negative zero points, as floats, of a ``QuantizeLinear`` whose zero points are no constant."""
    flat = producer_of(quantize.inputs[2], "Reshape")
    cast = None if flat is None else producer_of(flat.inputs[0], "Cast")
    rounded = None if cast is None else cast.inputs[0]
    uses = () if rounded is None else rounded.uses()
    return next((use.node.outputs[0] for use in uses if use.node.op_type == "Neg"), None)


def corrected(product: ir.Value, rows: RoundedRows) -> tuple[ir.Value, ir.Value] | None:
    """``(product + negative_zero · sums, sums)``, where that is what reads a product."""
    for use in product.uses() if rows.negative_zero is not None else ():
        outer = producer_of(other_input(use.node, product), "Mul") if use.node.op_type == "Add" else None
        if outer is not None and rows.negative_zero in outer.inputs and rows.negative_zero is not None:
            sums = other_input(outer, rows.negative_zero)
            return None if sums is None else (use.node.outputs[0], sums)
    return None


def added(product: ir.Value) -> ir.Value | None:
    """The sum of the halves of the product of what ``round_finely`` made, in whole steps."""
    split = next((use.node for use in product.uses() if use.node.op_type == "Split"), None)
    uses = () if split is None else split.outputs[0].uses()
    return next((use.node.outputs[0] for use in uses if use.node.op_type == "Add"), None)


class _Before:
    """Puts nodes before a node that reads an activation."""

    def __init__(self, node: ir.Node, x: ir.Value, shapes: Shapes) -> None:
        self._node = node
        self._shapes = shapes
        self._dims: tuple[Dim, ...] = (None,) if x.shape is None else tuple(dims_of(x))
        self._column: list[Dim] | None = None if x.shape is None else [*dims_of(x)[:-1], 1]
        self._nodes = 0

    def add(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a new node."""
        self._nodes += 1
        new = ir.node(op_type, inputs, attributes, name=f"{self._node.name}/rows/{self._nodes}/{op_type}")
        self._node.prepend(new)
        return new.outputs[0]

    def column(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """A float32 value [..., 1]."""
        output = self.add(op_type, *inputs, **attributes)
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = None if self._column is None else ir.Shape(self._column)
        return output

    def flat(self, column: ir.Value, emit: Emitter) -> ir.Value:
        """One number per row, [rows]."""
        return self.add("Reshape", column, emit.ints(-1))

    def integers(self, x: ir.Value, step: ir.Value, zero: ir.Value, emit: Emitter) -> ir.Value:
        """``x`` in steps, of its shape. ``QuantizeLinear`` reads rows along the first of two axes."""
        if x.shape is not None and rank(x) == 2:
            integers = self.add("QuantizeLinear", x, step, zero, axis=0)
        else:
            rows = self.add("Reshape", x, self._rows(x, emit))
            integers = self.add("QuantizeLinear", rows, step, zero, axis=0)
            integers = self.add("Reshape", integers, self._whole(x))
        integers.type, integers.shape = ir.TensorType(ir.DataType.UINT8), x.shape
        return integers

    def middles(self, middle: int, flat: ir.Value, emit: Emitter) -> ir.Value:
        """The same zero point for each row."""
        made, key = self._shapes.zeros, (middle, self._dims[:-1])
        if key not in made or None in self._dims:
            made[key] = self.add("Expand", emit.constant(np.array([middle], np.uint8)), self.add("Shape", flat))
        return made[key]

    def _whole(self, x: ir.Value) -> ir.Value:
        """The shape. Equal ones are read once."""
        made = self._shapes.whole
        if self._dims not in made or None in self._dims:
            made[self._dims] = self.add("Shape", x)
        return made[self._dims]

    def _rows(self, x: ir.Value, emit: Emitter) -> ir.Value:
        width = None if x.shape is None else dims_of(x)[-1]
        if isinstance(width, int):
            return emit.ints(-1, width)
        return self.add("Concat", emit.ints(-1), self.add("Shape", x, start=-1), axis=0)
