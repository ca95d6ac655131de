"""The gradient rule of GRU (Cho et al., EMNLP 2014), in both of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    split,
    sum_over_steps,
    tanh_derivative,
    where_valid,
)
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.nested.loops import loop


class _GruGates(NamedTuple):
    """Values of a direction, [T, N, H].

    Attributes:
        update, reset, new: z, r, n.
        product: R h₋ + b, which the reset gate multiplies with ``linear_before_reset``; else ``None``.
    """

    update: ir.Value
    reset: ir.Value
    new: ir.Value
    product: ir.Value | None


@rule_of_outputs("GRU", covers=lambda node: is_usual(node, "sigmoid", "tanh"))
def gru(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """h = (1 - z) n + z h₋, where z, r = σ(W x + R h₋ + b).

    With ``linear_before_reset`` (torch, cuDNN) n = tanh(W x + b + r (R h₋ + b')), else n = tanh(W x + b + R (r h₋)).
    """
    through = _reset_after if node.attributes.get_int("linear_before_reset", 0) else _reset_before
    return joined([through(direction, emit) for direction in directions(node, upstream, emit)], emit)


class _Factors(NamedTuple):
    """Derivatives by which the gradient of h is multiplied, [T, N, H]. They are 0 past the ends of rows.

    Attributes:
        new: of n before its tanh.
        update: of z before its sigmoid.
        carry: of h₋ past all gates; 1 past the ends of rows.
    """

    new: ir.Value
    update: ir.Value
    carry: ir.Value


def _factors(direction: Direction, gates: _GruGates, emit: Emitter) -> _Factors:
    z, n = gates.update, gates.new
    new = emit.op("Mul", emit.op("Sub", emit.scalar(1.0, like=z), z), tanh_derivative(n, emit))
    update = emit.op("Mul", emit.op("Sub", direction.previous, n), derivative(z, emit))
    return _Factors(
        where_valid(direction.valid, new, 0.0, emit),
        where_valid(direction.valid, update, 0.0, emit),
        where_valid(direction.valid, z, 1.0, emit),
    )


def _reset_after(direction: Direction, emit: Emitter) -> DirectionGradients:
    smooth_size = [2 * direction.units, direction.units]
    of_x = split(affine(direction.x, direction.w, direction.w_bias, emit), smooth_size, emit)
    of_h = split(affine(direction.previous, direction.r, direction.r_bias, emit), smooth_size, emit)
    z, r = split(emit.op("Sigmoid", emit.op("Add", of_x[0], of_h[0])), [direction.units] * 2, emit)
    gates = _GruGates(z, r, emit.op("Tanh", emit.op("Add", of_x[1], emit.op("Mul", r, of_h[1]))), of_h[1])
    factors = _factors(direction, gates, emit)
    reset = emit.op("Mul", emit.op("Mul", factors.new, of_h[1]), derivative(r, emit))
    of_hidden = emit.op("Concat", factors.update, reset, emit.op("Mul", factors.new, r), axis=-1)

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        dh = states[0] if direction.dy is None else inside.op("Add", states[0], slices[2])
        dgates = inside.op("Mul", inside.op("Concat", dh, dh, dh, axis=-1), slices[0])
        earlier = inside.op("Add", inside.op("MatMul", dgates, direction.r), inside.op("Mul", dh, slices[1]))
        return [earlier], [dh, dgates]

    slices = [of_hidden, factors.carry, *([] if direction.dy is None else [direction.dy])]
    first_h, dh, dgates_h = loop(emit, [direction.dh], slices, step, backwards=not direction.reverse)
    dsmooth = split(dgates_h, smooth_size, emit)[0]
    dgates_x = emit.op("Concat", dsmooth, emit.op("Mul", dh, factors.new), axis=-1)
    return DirectionGradients(
        x=emit.op("MatMul", dgates_x, direction.w),
        w=product_over_steps(dgates_x, 3 * direction.units, direction.x, direction.inputs, emit),
        r=product_over_steps(dgates_h, 3 * direction.units, direction.previous, emit.ints(direction.units), emit),
        w_bias=sum_over_steps(dgates_x, emit),
        r_bias=sum_over_steps(dgates_h, emit),
        first_h=first_h,
        first_c=None,
    )


def _reset_before(direction: Direction, emit: Emitter) -> DirectionGradients:
    sizes = [2 * direction.units, direction.units]
    of_x = split(affine(direction.x, direction.w, direction.w_bias, emit), sizes, emit)
    r_smooth, r_new = emit.ops("Split", direction.r, emit.ints(*sizes), axis=0, outputs=2)
    biases = (None, None) if direction.r_bias is None else split(direction.r_bias, sizes, emit)
    smooth = emit.op("Add", of_x[0], affine(direction.previous, r_smooth, biases[0], emit))
    z, r = split(emit.op("Sigmoid", smooth), [direction.units] * 2, emit)
    reset_state = emit.op("Mul", r, direction.previous)
    gates = _GruGates(z, r, emit.op("Tanh", emit.op("Add", of_x[1], affine(reset_state, r_new, biases[1], emit))), None)
    factors = _factors(direction, gates, emit)
    reset = emit.op("Mul", direction.previous, derivative(r, emit))

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        new, update, carry, reset, r = slices[:5]
        dh = states[0] if direction.dy is None else inside.op("Add", states[0], slices[5])
        dnew = inside.op("Mul", dh, new)
        dreset_state = inside.op("MatMul", dnew, r_new)
        dsmooth = inside.op("Concat", inside.op("Mul", dh, update), inside.op("Mul", dreset_state, reset), axis=-1)
        earlier = inside.op(
            "Sum",
            inside.op("MatMul", dsmooth, r_smooth),
            inside.op("Mul", dh, carry),
            inside.op("Mul", dreset_state, r),
        )
        return [earlier], [dsmooth, dnew]

    slices = [*factors, reset, r, *([] if direction.dy is None else [direction.dy])]
    first_h, dsmooth, dnew = loop(emit, [direction.dh], slices, step, backwards=not direction.reverse)
    dgates = emit.op("Concat", dsmooth, dnew, axis=-1)
    dbias = sum_over_steps(dgates, emit)
    dr = [
        product_over_steps(dsmooth, 2 * direction.units, direction.previous, emit.ints(direction.units), emit),
        product_over_steps(dnew, direction.units, reset_state, emit.ints(direction.units), emit),
    ]
    return DirectionGradients(
        x=emit.op("MatMul", dgates, direction.w),
        w=product_over_steps(dgates, 3 * direction.units, direction.x, direction.inputs, emit),
        r=emit.op("Concat", *dr, axis=0),
        w_bias=dbias,
        r_bias=dbias,
        first_h=first_h,
        first_c=None,
    )
