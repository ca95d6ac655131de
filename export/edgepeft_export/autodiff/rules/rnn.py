"""The gradient rule of the plain recurrent network (Elman, Cognitive Science 1990)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, Upstream, rule_of_outputs
from edgepeft_export.autodiff.rules.recurrent import (
    Direction,
    DirectionGradients,
    affine,
    derivative,
    directions,
    is_usual,
    joined,
    product_over_steps,
    sum_over_steps,
    tanh_derivative,
    where_valid,
)
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.nested.loops import loop
from edgepeft_export.graph.shapes import dtype_of

_ACTIVATIONS = {name.lower(): name for name in ("Tanh", "Relu", "Sigmoid")}


def _activation(node: ir.Node) -> str:
    """The activation in lower case; empty where the rule has no derivative of it."""
    given = (node.attributes.get_strings("activations", None) or ["Tanh"])[0].lower()
    return given if given in _ACTIVATIONS else ""


@rule_of_outputs("RNN", covers=lambda node: bool(_activation(node)) and is_usual(node, _activation(node)))
def rnn(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """h = f(W x + R h₋ + b), with f = tanh, sigmoid or relu, whose derivative follows from h."""
    activation = _ACTIVATIONS[_activation(node)]
    return joined([_through(direction, activation, emit) for direction in directions(node, upstream, emit)], emit)


def _through(direction: Direction, activation: str, emit: Emitter) -> DirectionGradients:
    of_x = affine(direction.x, direction.w, direction.w_bias, emit)
    h = emit.op(activation, emit.op("Add", of_x, affine(direction.previous, direction.r, direction.r_bias, emit)))
    factor = where_valid(direction.valid, _derivative(activation, h, emit), 0.0, emit)
    kept = [] if direction.valid is None else [_past_the_end(direction.valid, h, emit)]

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        dh = states[0] if direction.dy is None else inside.op("Add", states[0], slices[-1])
        dsum = inside.op("Mul", dh, slices[0])
        earlier = inside.op("MatMul", dsum, direction.r)
        if kept:
            earlier = inside.op("Add", earlier, inside.op("Mul", dh, slices[1]))
        return [earlier], [dsum]

    slices = [factor, *kept, *([] if direction.dy is None else [direction.dy])]
    first_h, dsum = loop(emit, [direction.dh], slices, step, backwards=not direction.reverse)
    dbias = sum_over_steps(dsum, emit)
    return DirectionGradients(
        x=emit.op("MatMul", dsum, direction.w),
        w=product_over_steps(dsum, direction.units, direction.x, direction.inputs, emit),
        r=product_over_steps(dsum, direction.units, direction.previous, emit.ints(direction.units), emit),
        w_bias=dbias,
        r_bias=dbias,
        first_h=first_h,
        first_c=None,
    )


def _derivative(activation: str, h: ir.Value, emit: Emitter) -> ir.Value:
    if activation == "Relu":
        return emit.cast(emit.op("Greater", h, emit.scalar(0.0, like=h)), dtype_of(h))
    return tanh_derivative(h, emit) if activation == "Tanh" else derivative(h, emit)


def _past_the_end(valid: ir.Value, like: ir.Value, emit: Emitter) -> ir.Value:
    """1 where a row has ended and its state stays, else 0; [T, N, 1]."""
    return emit.cast(emit.op("Not", valid), dtype_of(like))
