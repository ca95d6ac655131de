"""The gradient rule of LSTM (Hochreiter and Schmidhuber, 1997; with forget gates)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, Upstream, rule_of_outputs
from edgepeft_export.autodiff.rules.recurrent import (
    Direction,
    DirectionGradients,
    affine,
    before,
    derivative,
    directions,
    is_usual,
    joined,
    product_over_steps,
    split,
    sum_over_steps,
    tanh_derivative,
    where_valid,
)
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.nested.loops import loop
from edgepeft_export.graph.shapes import dtype_of


class _LstmGates(NamedTuple):
    """Values of the gates, [T, N, H]."""

    input: ir.Value
    output: ir.Value
    forget: ir.Value
    cell: ir.Value


@rule_of_outputs("LSTM", covers=lambda node: is_usual(node, "sigmoid", "tanh", "tanh"))
def lstm(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """c = f c₋ + i g, h = o tanh(c), where i, o, f = σ(W x + R h₋ + b) and g = tanh(W x + R h₋ + b)."""
    return joined([_through(direction, emit) for direction in directions(node, upstream, emit)], emit)


def _through(direction: Direction, emit: Emitter) -> DirectionGradients:
    gates = _gates(direction, emit)
    dgates, dh, dc = _backwards(direction, gates, emit)
    dbias = sum_over_steps(dgates, emit)
    return DirectionGradients(
        x=emit.op("MatMul", dgates, direction.w),
        w=product_over_steps(dgates, 4 * direction.units, direction.x, direction.inputs, emit),
        r=product_over_steps(dgates, 4 * direction.units, direction.previous, emit.ints(direction.units), emit),
        w_bias=dbias,
        r_bias=dbias,
        first_h=dh,
        first_c=dc,
    )


def _gates(direction: Direction, emit: Emitter) -> _LstmGates:
    of_x = affine(direction.x, direction.w, direction.w_bias, emit)
    total = emit.op("Add", of_x, affine(direction.previous, direction.r, direction.r_bias, emit))
    smooth, cell = split(total, [3 * direction.units, direction.units], emit)
    i, o, f = split(emit.op("Sigmoid", smooth), [direction.units] * 3, emit)
    # Past its end a row's cell does not change.
    return _LstmGates(
        where_valid(direction.valid, i, 0.0, emit), o, where_valid(direction.valid, f, 1.0, emit), emit.op("Tanh", cell)
    )


def _cells(direction: Direction, gates: _LstmGates, emit: Emitter) -> ir.Value:
    """The cell after each step, [T, N, H]: ONNX's LSTM returns only the last."""

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        cell = inside.op("Add", inside.op("Mul", slices[0], states[0]), slices[1])
        return [cell], [cell]

    new = emit.op("Mul", gates.input, gates.cell)
    return loop(emit, [direction.first_c], [gates.forget, new], step, backwards=direction.reverse)[1]


def _backwards(direction: Direction, gates: _LstmGates, emit: Emitter) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The gradients of the gates before their activations, [T, N, 4·H], and of the first states.

    With dh and dc of a step, the gates' gradients are (dc, dh, dc, dc) times factors computed before the loop.
    """
    cells = _cells(direction, gates, emit)
    squashed = emit.op("Tanh", cells)
    into_cell = emit.op("Mul", gates.output, tanh_derivative(squashed, emit))
    factors = emit.op(
        "Concat",
        emit.op("Mul", gates.cell, derivative(gates.input, emit)),
        emit.op("Mul", squashed, derivative(gates.output, emit)),
        emit.op("Mul", before(cells, direction.first_c, direction.reverse, emit), derivative(gates.forget, emit)),
        emit.op("Mul", gates.input, tanh_derivative(gates.cell, emit)),
        axis=-1,
    )
    slices = [
        where_valid(direction.valid, into_cell, 0.0, emit),
        where_valid(direction.valid, factors, 0.0, emit),
        gates.forget,
        *([] if direction.dy is None else [direction.dy]),
    ]
    if direction.valid is not None:
        slices.append(emit.cast(emit.op("Not", direction.valid), dtype_of(direction.x)))

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        (dh, dc), (into_cell, factors, forget) = states, slices[:3]
        if direction.dy is not None:
            dh = inside.op("Add", dh, slices[3])
        dc = inside.op("Add", dc, inside.op("Mul", dh, into_cell))
        dgates = inside.op("Mul", inside.op("Concat", dc, dh, dc, dc, axis=-1), factors)
        earlier = inside.op("MatMul", dgates, direction.r)
        if direction.valid is not None:
            earlier = inside.op("Add", earlier, inside.op("Mul", dh, slices[-1]))
        return [earlier, inside.op("Mul", dc, forget)], [dgates]

    dh, dc, dgates = loop(emit, [direction.dh, direction.dc], slices, step, backwards=not direction.reverse)
    return dgates, dh, dc
