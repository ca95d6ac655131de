"""Rounds the rows of an activation or a gradient to 8 bits, each with a scale of its own.

``DynamicQuantizeLinear`` has one scale for the whole tensor, with which a row of a thousandth of another's size rounds
to zero. Here a row r is ``step_r · (integers_r - 128)`` with ``step_r = max|r| / 127``, and the product of the integers
with a matrix is multiplied by the steps. Scale and zero point of the integers are constants, so nothing searches for
the range of the whole tensor: rounding costs two reductions and a division, and one multiplication of the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import producer_of
from edgepeft_export.graph.shapes import Dim, dims_of

LARGEST = 127
"""Integers of a row lie between 128 - 127 and 128 + 127, so uint8 suffices and pairs of products fit into 16 bits."""

MIDDLE = 128
"""The zero point."""

SMALLEST = float(2.0**-100)
"""Rows whose largest element is smaller round to zero. A step of zero would divide 0 by 0."""


@dataclass(frozen=True)
class RoundedRows:
    """``step · (integers - MIDDLE)`` is the activation.

    Attributes:
        integers: uint8, of the activation's shape.
        step: float32, [..., 1].
    """

    integers: ir.Value
    step: ir.Value


def round_rows(x: ir.Value, node: ir.Node, emit: Emitter) -> RoundedRows:
    """Round ``x``; the new nodes come before ``node``. The emitter only makes the constants."""
    column = None if x.shape is None else [*dims_of(x)[:-1], 1]
    last = emit.ints(-1)
    largest = _add(node, "ReduceMax", [x, last], column, keepdims=1)
    smallest = _add(node, "ReduceMin", [x, last], column, keepdims=1)
    size = [largest, _add(node, "Neg", [smallest], column), emit.scalar(SMALLEST, like=x)]
    step = _add(node, "Mul", [_add(node, "Max", size, column), emit.scalar(1 / LARGEST, like=x)], column)
    scaled = _add(node, "Div", [x, step], None if x.shape is None else dims_of(x))
    integers = _add(node, "QuantizeLinear", [scaled, *grid(emit, x)], None if x.shape is None else dims_of(x))
    integers.type = ir.TensorType(ir.DataType.UINT8)
    return RoundedRows(integers, step)


def grid(emit: Emitter, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of the integers."""
    return emit.scalar(1.0, like=x), emit.constant(np.array(MIDDLE, np.uint8))


def rows_of(integers: ir.Value | None) -> RoundedRows | None:
    """What :func:`round_rows` made ``integers`` of; ``None`` where it did not."""
    quantize = producer_of(integers, "QuantizeLinear")
    divide = None if quantize is None else producer_of(quantize.inputs[0], "Div")
    step = None if divide is None else divide.inputs[1]
    if integers is None or step is None or producer_of(step, "Mul") is None:
        return None
    return RoundedRows(integers, step)


def before_rounding(rows: RoundedRows) -> ir.Value:
    """The activation that was rounded."""
    quantize = rows.integers.producer()
    divide = None if quantize is None else producer_of(quantize.inputs[0], "Div")
    assert divide is not None and divide.inputs[0] is not None
    return divide.inputs[0]


def _add(node: ir.Node, op_type: str, inputs: list[ir.Value], shape: list[Dim] | None, **attributes: int) -> ir.Value:
    """Put a node of float32 operands before ``node``, and return its output."""
    new = ir.node(op_type, inputs, attributes, name=f"{node.name}/rows/{op_type}")
    node.prepend(new)
    output = new.outputs[0]
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), None if shape is None else ir.Shape(shape)
    return output
