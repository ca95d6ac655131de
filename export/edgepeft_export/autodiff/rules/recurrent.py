"""Shared parts of the gradient rules of recurrent networks (LSTM, GRU, RNN).

The forward stays the fused operator of ONNX Runtime. It returns the hidden states of all steps, so the backward
recomputes the gates of *all* steps in one matmul. Only the recurrence itself is a loop: a few elementwise nodes and one
matmul in the body of a Scan. The gradients of weights, biases and inputs are matmuls over all steps at once, after the
loop. The number of steps stays free. An unrolled graph would have a fixed length, and grow with it.

Shapes: T steps, N rows, H hidden units, G gates, I inputs; a direction at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, Upstream
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import dims_of

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Direction:
    """A recurrent operator in one direction, and the gradients that arrive there.

    Attributes:
        reverse: whether the last step comes first.
        units: H.
        inputs: I, as an int64 vector of length 1.
        x: input, [T, N, I].
        w, r: weights of input and hidden state, [G·H, I] and [G·H, H].
        w_bias, r_bias: [G·H], or ``None``.
        previous: hidden states before each step, [T, N, H].
        first_h, first_c: states before the first step, [N, H].
        valid: [T, N, 1], where rows have lengths of their own.
        dy: gradient of the hidden states, [T, N, H], 0 past a row's end.
        dh, dc: gradients of the states after the last step, [N, H].
    """

    reverse: bool
    units: int
    inputs: ir.Value
    x: ir.Value
    w: ir.Value
    r: ir.Value
    w_bias: ir.Value | None
    r_bias: ir.Value | None
    previous: ir.Value
    first_h: ir.Value
    first_c: ir.Value
    valid: ir.Value | None
    dy: ir.Value | None
    dh: ir.Value
    dc: ir.Value


class DirectionGradients(NamedTuple):
    """Gradients of what a direction reads, shaped as in ``Direction``."""

    x: ir.Value
    w: ir.Value
    r: ir.Value
    w_bias: ir.Value
    r_bias: ir.Value
    first_h: ir.Value
    first_c: ir.Value | None


def is_usual(node: ir.Node, *activations: str) -> bool:
    """Whether the equations here cover a node. Others are written as loops over plain operators."""
    given = [name.lower() for name in node.attributes.get_strings("activations", None) or ()]
    other = any(name != activations[index % len(activations)] for index, name in enumerate(given))
    unusual = "clip" in node.attributes or any(node.attributes.get_int(name, 0) for name in ("input_forget", "layout"))
    return not (other or unusual or present(node, 7) is not None)


def directions(node: ir.Node, upstream: Upstream, emit: Emitter) -> list[Direction]:
    """The directions of a node, one by one."""
    name = node.attributes.get_string("direction", "forward")
    reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[str(name)]
    valid = _valid(node, emit)
    return [_direction(node, upstream, emit, valid, at, len(reverse), flag) for at, flag in enumerate(reverse)]


def _direction(
    node: ir.Node, upstream: Upstream, emit: Emitter, valid: ir.Value | None, at: int, count: int, reverse: bool
) -> Direction:
    x, units = operand(node), _units(node)
    none = emit.zeros(emit.op("Concat", emit.dim(x, 1), emit.ints(units), axis=0), like=x)
    dy, dh, dc = (
        _part(value, axis, at, count, emit) for value, axis in zip((*upstream, None, None)[:3], (1, 0, 0), strict=True)
    )
    first_h, first_c = (_part(present(node, index), 0, at, count, emit) or none for index in (5, 6))
    hidden = _part_of(_hidden(node), 1, at, count, emit)
    if valid is not None and reverse:
        hidden = emit.op("Where", valid, hidden, first_h)  # 0 past a row's end, where this direction starts
    return Direction(
        reverse,
        units,
        emit.dim(operand(node, 1), 2),
        x,
        _part_of(operand(node, 1), 0, at, count, emit),
        _part_of(operand(node, 2), 0, at, count, emit),
        *_biases(_part(present(node, 3), 0, at, count, emit), GATES[node.op_type] * units, emit),
        previous=before(hidden, first_h, reverse, emit),
        first_h=first_h,
        first_c=first_c,
        valid=valid,
        dy=None if dy is None else where_valid(valid, dy, 0.0, emit),
        dh=dh or none,
        dc=dc or none,
    )


def _units(node: ir.Node) -> int:
    units = node.attributes.get_int("hidden_size", None) or dims_of(operand(node, 2))[2]
    if not isinstance(units, int):
        raise NoGradientForCase(node, "the number of hidden units is not known", "give it the attribute hidden_size")
    return units


def _hidden(node: ir.Node) -> ir.Value:
    """The hidden states of all steps. The node gets this output if it did not have it."""
    value = node.outputs[0]
    if not value.name:
        value.name = f"{node.name or node.op_type}.states"
    value.type = operand(node).type
    return value


def _valid(node: ir.Node, emit: Emitter) -> ir.Value | None:
    """Whether a step lies before the end of its row, [T, N, 1]; ``None`` where all rows have all steps."""
    lengths = present(node, 4)
    if lengths is None:
        return None
    end = emit.op("Squeeze", emit.dim(operand(node), 0), emit.ints(0))
    zero, one = (emit.constant(np.asarray(number, dtype=np.int64)) for number in (0, 1))
    steps = emit.op("Unsqueeze", emit.op("Range", zero, end, one), emit.ints(1, 2))
    return emit.op("Less", steps, emit.op("Unsqueeze", emit.op("Cast", lengths, to=7), emit.ints(1)))


def _part(value: ir.Value | None, axis: int, at: int, count: int, emit: Emitter) -> ir.Value | None:
    """The part of one of ``count`` directions, which lie along ``axis``."""
    return None if value is None else _part_of(value, axis, at, count, emit)


def _part_of(value: ir.Value, axis: int, at: int, count: int, emit: Emitter) -> ir.Value:
    if count == 1:
        return emit.op("Squeeze", value, emit.ints(axis))
    return emit.op("Gather", value, emit.constant(np.asarray(at, dtype=np.int64)), axis=axis)


def _biases(both: ir.Value | None, size: int, emit: Emitter) -> tuple[ir.Value | None, ir.Value | None]:
    if both is None:
        return None, None
    w_bias, r_bias = split(both, [size, size], emit)
    return w_bias, r_bias


def before(states: ir.Value, initial: ir.Value, reverse: bool, emit: Emitter) -> ir.Value:
    """The state before each step: those after each step, moved by one, with the initial one in front."""
    start, end = (1, np.iinfo(np.int64).max) if reverse else (0, -1)
    rest = emit.op("Slice", states, emit.ints(start), emit.ints(int(end)), emit.ints(0))
    edge = emit.op("Unsqueeze", initial, emit.ints(0))
    return emit.op("Concat", *((rest, edge) if reverse else (edge, rest)), axis=0)


def where_valid(valid: ir.Value | None, value: ir.Value, otherwise: float, emit: Emitter) -> ir.Value:
    """``value``, and the number ``otherwise`` past the ends of rows."""
    return value if valid is None else emit.op("Where", valid, value, emit.scalar(otherwise, like=value))


def split(value: ir.Value, sizes: Sequence[int], emit: Emitter) -> Sequence[ir.Value]:
    """Pieces of the last axis."""
    return emit.ops("Split", value, emit.ints(*sizes), axis=-1, outputs=len(sizes))


def affine(x: ir.Value, w: ir.Value, bias: ir.Value | None, emit: Emitter) -> ir.Value:
    """x wᵀ + bias, of all steps at once."""
    product = emit.op("MatMul", x, emit.op("Transpose", w, perm=[1, 0]))
    return product if bias is None else emit.op("Add", product, bias)


def derivative(sigmoid: ir.Value, emit: Emitter) -> ir.Value:
    """s (1 - s), the derivative of a sigmoid whose value is s."""
    return emit.op("Mul", sigmoid, emit.op("Sub", emit.scalar(1.0, like=sigmoid), sigmoid))


def tanh_derivative(tanh: ir.Value, emit: Emitter) -> ir.Value:
    """1 - t², the derivative of a tanh whose value is t."""
    return emit.op("Sub", emit.scalar(1.0, like=tanh), emit.op("Mul", tanh, tanh))


def product_over_steps(gates: ir.Value, width: int, read: ir.Value, columns: ir.Value, emit: Emitter) -> ir.Value:
    """Σ gatesᵀ read over all steps and rows: [T, N, width] and [T, N, columns] to [width, columns]."""
    flat = emit.op("Reshape", gates, emit.ints(-1, width))
    other = emit.op("Reshape", read, emit.op("Concat", emit.ints(-1), columns, axis=0))
    return emit.op("MatMul", emit.op("Transpose", flat, perm=[1, 0]), other)


def sum_over_steps(gates: ir.Value, emit: Emitter) -> ir.Value:
    return emit.op("ReduceSum", gates, emit.ints(0, 1), keepdims=0)


def joined(parts: Sequence[DirectionGradients], emit: Emitter) -> Gradients:
    """Gradients of all inputs of a node from those of its directions."""

    def stacked(values: Sequence[ir.Value | None]) -> ir.Value | None:
        there = [emit.op("Unsqueeze", value, emit.ints(0)) for value in values if value is not None]
        return None if not there else there[0] if len(there) == 1 else emit.op("Concat", *there, axis=0)

    biases = [emit.op("Concat", part.w_bias, part.r_bias, axis=0) for part in parts]
    return (
        emit.add([part.x for part in parts]),
        stacked([part.w for part in parts]),
        stacked([part.r for part in parts]),
        stacked(biases),
        None,
        stacked([part.first_h for part in parts]),
        stacked([part.first_c for part in parts]),
    )
