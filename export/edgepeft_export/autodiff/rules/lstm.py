"""The gradient rule of LSTM (Hochreiter and Schmidhuber, 1997; with forget gates)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, Upstream, rule
from edgepeft_export.autodiff.rules.recurrent import (
    Direction,
    DirectionGradients,
    affine,
    before,
    derivative,
    directions,
    joined,
    loop,
    product_over_steps,
    refuse_unusual,
    split,
    sum_over_steps,
    tanh_derivative,
    where_valid,
)
from edgepeft_export.graph.emit import Emitter


class _Gates(NamedTuple):
    """Values of the gates, [T, N, H]."""

    input: ir.Value
    output: ir.Value
    forget: ir.Value
    cell: ir.Value


@rule("LSTM", outputs=None)
def lstm(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """c = f c₋ + i g, h = o tanh(c), where i, o, f = σ(W x + R h₋ + b) and g = tanh(W x + R h₋ + b)."""
    refuse_unusual(node, ["sigmoid", "tanh", "tanh"])
    return joined([_through(one, emit) for one in directions(node, upstream, emit)], emit)


def _through(one: Direction, emit: Emitter) -> DirectionGradients:
    gates = _gates(one, emit)
    dgates, dh, dc = _backwards(one, gates, emit)
    dbias = sum_over_steps(dgates, emit)
    return DirectionGradients(
        x=emit.op("MatMul", dgates, one.w),
        w=product_over_steps(dgates, 4 * one.units, one.x, one.inputs, emit),
        r=product_over_steps(dgates, 4 * one.units, one.previous, emit.ints(one.units), emit),
        w_bias=dbias,
        r_bias=dbias,
        first_h=dh,
        first_c=dc,
    )


def _gates(one: Direction, emit: Emitter) -> _Gates:
    of_x = affine(one.x, one.w, one.w_bias, emit)
    total = emit.op("Add", of_x, affine(one.previous, one.r, one.r_bias, emit))
    smooth, cell = split(total, [3 * one.units, one.units], emit)
    i, o, f = split(emit.op("Sigmoid", smooth), [one.units] * 3, emit)
    # Behind its end a row's cell stays what it is.
    return _Gates(where_valid(one.valid, i, 0.0, emit), o, where_valid(one.valid, f, 1.0, emit), emit.op("Tanh", cell))


def _cells(one: Direction, gates: _Gates, emit: Emitter) -> ir.Value:
    """The cell after each step, [T, N, H]: ONNX's LSTM gives only the last."""

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        cell = inside.op("Add", inside.op("Mul", slices[0], states[0]), slices[1])
        return [cell], [cell]

    new = emit.op("Mul", gates.input, gates.cell)
    return loop(emit, [one.first_c], [gates.forget, new], step, backwards=one.reverse)[1]


def _backwards(one: Direction, gates: _Gates, emit: Emitter) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The gradients of the gates before their activations, [T, N, 4·H], and of the first states.

    With dh and dc of a step, the gates' gradients are (dc, dh, dc, dc) times factors that are known beforehand.
    """
    cells = _cells(one, gates, emit)
    squashed = emit.op("Tanh", cells)
    into_cell = emit.op("Mul", gates.output, tanh_derivative(squashed, emit))
    factors = emit.op(
        "Concat",
        emit.op("Mul", gates.cell, derivative(gates.input, emit)),
        emit.op("Mul", squashed, derivative(gates.output, emit)),
        emit.op("Mul", before(cells, one.first_c, one.reverse, emit), derivative(gates.forget, emit)),
        emit.op("Mul", gates.input, tanh_derivative(gates.cell, emit)),
        axis=-1,
    )
    slices = [
        where_valid(one.valid, into_cell, 0.0, emit),
        where_valid(one.valid, factors, 0.0, emit),
        gates.forget,
        *([] if one.dy is None else [one.dy]),
    ]
    if one.valid is not None:
        ended = emit.op("Cast", emit.op("Not", one.valid), to=int(one.x.dtype or ir.DataType.FLOAT))
        slices.append(ended)

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        (dh, dc), (into_cell, factors, forget) = states, slices[:3]
        if one.dy is not None:
            dh = inside.op("Add", dh, slices[3])
        dc = inside.op("Add", dc, inside.op("Mul", dh, into_cell))
        dgates = inside.op("Mul", inside.op("Concat", dc, dh, dc, dc, axis=-1), factors)
        earlier = inside.op("MatMul", dgates, one.r)
        if one.valid is not None:
            earlier = inside.op("Add", earlier, inside.op("Mul", dh, slices[-1]))
        return [earlier, inside.op("Mul", dc, forget)], [dgates]

    dh, dc, dgates = loop(emit, [one.dh, one.dc], slices, step, backwards=not one.reverse)
    return dgates, dh, dc
