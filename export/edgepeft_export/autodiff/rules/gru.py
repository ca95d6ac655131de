"""The gradient rule of GRU (Cho et al., EMNLP 2014), in both of its forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, Upstream, rule
from edgepeft_export.autodiff.rules.recurrent import (
    Direction,
    DirectionGradients,
    affine,
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
    """Values of a direction, [T, N, H].

    Attributes:
        update, reset, new: z, r, n.
        product: what the reset gate multiplies where it comes behind the product, R h₋ + b.
    """

    update: ir.Value
    reset: ir.Value
    new: ir.Value
    product: ir.Value | None


@rule("GRU", outputs=None)
def gru(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """h = (1 - z) n + z h₋, where z, r = σ(W x + R h₋ + b).

    With ``linear_before_reset`` (torch, cuDNN) n = tanh(W x + b + r (R h₋ + b')), else n = tanh(W x + b + R (r h₋)).
    """
    refuse_unusual(node, ["sigmoid", "tanh"])
    behind = bool(node.attributes.get_int("linear_before_reset", 0))
    through = _reset_behind if behind else _reset_before
    return joined([through(one, emit) for one in directions(node, upstream, emit)], emit)


class _Factors(NamedTuple):
    """Derivatives by which the gradient of h is multiplied, [T, N, H]; 0 behind the ends of rows.

    Attributes:
        new: of n before its tanh.
        update: of z before its sigmoid.
        carry: of h₋ past all gates; 1 behind the ends of rows.
    """

    new: ir.Value
    update: ir.Value
    carry: ir.Value


def _factors(one: Direction, gates: _Gates, emit: Emitter) -> _Factors:
    z, n = gates.update, gates.new
    new = emit.op("Mul", emit.op("Sub", emit.scalar(1.0, like=z), z), tanh_derivative(n, emit))
    update = emit.op("Mul", emit.op("Sub", one.previous, n), derivative(z, emit))
    return _Factors(
        where_valid(one.valid, new, 0.0, emit),
        where_valid(one.valid, update, 0.0, emit),
        where_valid(one.valid, z, 1.0, emit),
    )


def _reset_behind(one: Direction, emit: Emitter) -> DirectionGradients:
    smooth_size = [2 * one.units, one.units]
    of_x = split(affine(one.x, one.w, one.w_bias, emit), smooth_size, emit)
    of_h = split(affine(one.previous, one.r, one.r_bias, emit), smooth_size, emit)
    z, r = split(emit.op("Sigmoid", emit.op("Add", of_x[0], of_h[0])), [one.units] * 2, emit)
    gates = _Gates(z, r, emit.op("Tanh", emit.op("Add", of_x[1], emit.op("Mul", r, of_h[1]))), of_h[1])
    factors = _factors(one, gates, emit)
    reset = emit.op("Mul", emit.op("Mul", factors.new, of_h[1]), derivative(r, emit))
    of_hidden = emit.op("Concat", factors.update, reset, emit.op("Mul", factors.new, r), axis=-1)

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        dh = states[0] if one.dy is None else inside.op("Add", states[0], slices[2])
        dgates = inside.op("Mul", inside.op("Concat", dh, dh, dh, axis=-1), slices[0])
        earlier = inside.op("Add", inside.op("MatMul", dgates, one.r), inside.op("Mul", dh, slices[1]))
        return [earlier], [dh, dgates]

    slices = [of_hidden, factors.carry, *([] if one.dy is None else [one.dy])]
    first_h, dh, dgates_h = loop(emit, [one.dh], slices, step, backwards=not one.reverse)
    dsmooth = split(dgates_h, smooth_size, emit)[0]
    dgates_x = emit.op("Concat", dsmooth, emit.op("Mul", dh, factors.new), axis=-1)
    return DirectionGradients(
        x=emit.op("MatMul", dgates_x, one.w),
        w=product_over_steps(dgates_x, 3 * one.units, one.x, one.inputs, emit),
        r=product_over_steps(dgates_h, 3 * one.units, one.previous, emit.ints(one.units), emit),
        w_bias=sum_over_steps(dgates_x, emit),
        r_bias=sum_over_steps(dgates_h, emit),
        first_h=first_h,
        first_c=None,
    )


def _reset_before(one: Direction, emit: Emitter) -> DirectionGradients:
    sizes = [2 * one.units, one.units]
    of_x = split(affine(one.x, one.w, one.w_bias, emit), sizes, emit)
    r_smooth, r_new = emit.ops("Split", one.r, emit.ints(*sizes), axis=0, outputs=2)
    biases = (None, None) if one.r_bias is None else split(one.r_bias, sizes, emit)
    smooth = emit.op("Add", of_x[0], affine(one.previous, r_smooth, biases[0], emit))
    z, r = split(emit.op("Sigmoid", smooth), [one.units] * 2, emit)
    kept = emit.op("Mul", r, one.previous)
    gates = _Gates(z, r, emit.op("Tanh", emit.op("Add", of_x[1], affine(kept, r_new, biases[1], emit))), None)
    factors = _factors(one, gates, emit)
    reset = emit.op("Mul", one.previous, derivative(r, emit))

    def step(
        inside: Emitter, states: Sequence[ir.Value], slices: Sequence[ir.Value]
    ) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
        new, update, carry, reset, r = slices[:5]
        dh = states[0] if one.dy is None else inside.op("Add", states[0], slices[5])
        dnew = inside.op("Mul", dh, new)
        dkept = inside.op("MatMul", dnew, r_new)
        dsmooth = inside.op("Concat", inside.op("Mul", dh, update), inside.op("Mul", dkept, reset), axis=-1)
        earlier = inside.op(
            "Sum",
            inside.op("MatMul", dsmooth, r_smooth),
            inside.op("Mul", dh, carry),
            inside.op("Mul", dkept, r),
        )
        return [earlier], [dsmooth, dnew]

    slices = [*factors, reset, r, *([] if one.dy is None else [one.dy])]
    first_h, dsmooth, dnew = loop(emit, [one.dh], slices, step, backwards=not one.reverse)
    dgates = emit.op("Concat", dsmooth, dnew, axis=-1)
    dbias = sum_over_steps(dgates, emit)
    dr = [
        product_over_steps(dsmooth, 2 * one.units, one.previous, emit.ints(one.units), emit),
        product_over_steps(dnew, one.units, kept, emit.ints(one.units), emit),
    ]
    return DirectionGradients(
        x=emit.op("MatMul", dgates, one.w),
        w=product_over_steps(dgates, 3 * one.units, one.x, one.inputs, emit),
        r=emit.op("Concat", *dr, axis=0),
        w_bias=dbias,
        r_bias=dbias,
        first_h=first_h,
        first_c=None,
    )
