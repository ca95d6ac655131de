"""Arithmetic on one or several tensors, element by element. The walk sums gradients of broadcast inputs."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import ZERO, Flat, Gradients, NoGradientForCase, Upstream, rule
from edgepeft_export.autodiff.rules.reading import first, narrow, reshaped_like
from edgepeft_export.graph.constants import known, known_number
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import present
from edgepeft_export.graph.shapes import dims_of, is_float


@rule("Add", broadcasts=True)
def add(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    (dy,) = upstream
    return dy, dy


@rule("Sum", broadcasts=True)
def sum_(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    return [upstream[0]] * len(node.inputs)


@rule("Mean", broadcasts=True)
def mean(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    share = emit.op("Mul", upstream[0], emit.scalar(1 / len(node.inputs), like=first(node)))
    return [share] * len(node.inputs)


@rule("Sub", broadcasts=True)
def sub(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    (dy,) = upstream
    return dy, emit.op("Neg", dy)


@rule("Mul", broadcasts=True)
def mul(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    (dy,), (a, b) = upstream, node.inputs
    assert a is not None
    assert b is not None
    return emit.op("Mul", _beside(b, node, dy), b), emit.op("Mul", _beside(a, node, dy), a)


def _beside(operand: ir.Value, node: ir.Node, dy: ir.Value | None) -> ir.Value | None:
    """The gradient as it may stand beside an operand: not expanded, if that has the output's shape itself."""
    dims = dims_of(operand)
    return narrow(dy) if None not in dims and dims == dims_of(node.outputs[0]) else dy


@rule("Div", broadcasts=True)
def div(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    (dy,), (_, b) = upstream, node.inputs
    da = emit.op("Div", dy, b)
    return da, emit.op("Neg", emit.op("Mul", da, node.outputs[0]))


@rule("Mod", broadcasts=True)
def mod(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    (dy,), (a, b), y = upstream, node.inputs, node.outputs[0]
    # y = a - n b with a whole number n, whichever way the operator rounds.
    minus_n = emit.op("Div", emit.op("Sub", y, a), b)
    # By an infinite b nothing is taken off; the quotient is NaN there.
    whole = emit.op("Where", emit.op("IsNaN", minus_n), emit.scalar(0.0, like=first(node)), minus_n)
    return dy, emit.op("Mul", dy, whole)


@rule("Pow", broadcasts=True)
def pow_(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    (dy,), (base, exponent), y = upstream, node.inputs, node.outputs[0]
    assert dy is not None
    assert base is not None
    assert exponent is not None
    number = known_number(exponent)
    if number is not None:
        return _constant_power(base, number, y, dy, emit), None
    return _power_of_base(base, exponent, dy, emit), _power_of_exponent(base, exponent, y, dy, emit)


def _constant_power(base: ir.Value, exponent: float, y: ir.Value, dy: ir.Value, emit: Emitter) -> ir.Value | Flat:
    """dy · p · base^(p-1), by multiplications where the exponents of networks (2, 3, ±0.5) allow it."""
    if exponent == 0:
        return ZERO
    if exponent == 0.5:
        return emit.op("Div", emit.op("Mul", dy, emit.scalar(0.5, like=base)), y)
    if exponent in (-0.5, -1):
        power = emit.op("Div", y, base)
    elif exponent in (2, 3):
        power = base if exponent == 2 else emit.op("Mul", base, base)
    else:
        power = emit.op("Pow", base, emit.scalar(exponent - 1, like=base))
    return emit.op("Mul", emit.op("Mul", narrow(dy), emit.scalar(exponent, like=base)), power)


def _power_of_base(base: ir.Value, exponent: ir.Value, dy: ir.Value, emit: Emitter) -> ir.Value:
    power = emit.op("Pow", base, emit.op("Sub", exponent, emit.scalar(1, like=exponent)))
    factor = exponent
    if exponent.dtype != base.dtype:
        assert base.dtype is not None
        factor = emit.op("Cast", exponent, to=int(base.dtype))
    derivative = emit.op("Mul", dy, emit.op("Mul", power, factor))
    # 0 · 0^-1 would be NaN; a number to the power 0 does not move.
    flat = emit.op("Equal", exponent, emit.scalar(0, like=exponent))
    return emit.op("Where", flat, emit.scalar(0.0, like=base), derivative)


def _power_of_exponent(base: ir.Value, exponent: ir.Value, y: ir.Value, dy: ir.Value, emit: Emitter) -> ir.Value | None:
    if not is_float(exponent):
        return None
    derivative = emit.op("Mul", dy, emit.op("Mul", y, emit.op("Log", base)))
    positive = emit.op("Greater", base, emit.scalar(0.0, like=base))
    gradient = emit.op("Where", positive, derivative, emit.scalar(0.0, like=base))
    assert exponent.dtype is not None
    return gradient if exponent.dtype == base.dtype else emit.op("Cast", gradient, to=int(exponent.dtype))


@rule("Neg")
def neg(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    return (emit.op("Neg", upstream[0]),)


@rule("Abs")
def abs_(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    return (emit.op("Mul", upstream[0], emit.op("Sign", node.inputs[0])),)


@rule("Max", "Min", broadcasts=True)
def extremum(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """Inputs that share an element's extremum share its gradient evenly, as with ``torch.maximum``."""
    if len(node.inputs) == 1:
        return upstream
    dtype = first(node).dtype
    assert dtype is not None
    attains = [emit.op("Cast", emit.op("Equal", value, node.outputs[0]), to=int(dtype)) for value in node.inputs]
    each = emit.op("Div", upstream[0], emit.add(attains))
    return [emit.op("Mul", each, one) for one in attains]


@rule("Identity")
def identity(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    return upstream


@rule("Cast", "CastLike")
def cast(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """The second input of CastLike gives its type alone."""
    x = first(node)
    if not is_float(x):
        return None, ZERO
    assert x.dtype is not None
    same = x.dtype == node.outputs[0].dtype
    return upstream[0] if same else emit.op("Cast", upstream[0], to=int(x.dtype)), ZERO


@rule("Where", broadcasts=True)
def where(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    (dy,), (condition, a, _) = upstream, node.inputs
    assert a is not None
    zero = emit.scalar(0.0, like=a)
    return None, emit.op("Where", condition, dy, zero), emit.op("Where", condition, zero, dy)


@rule("Clip")
def clip(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """dy goes to x within the bounds, else to the bound; where these are crossed, all of it to the upper one."""
    x, low, high = first(node), present(node, 1), present(node, 2)
    inside = emit.op("Equal", x, node.outputs[0])
    below = None if low is None else emit.op("Less", x, low)
    above = None if high is None else emit.op("Greater", x, high)
    if below is not None and above is not None and _may_cross(low, high):
        ordered = emit.op("LessOrEqual", low, high)
        inside, below = emit.op("And", inside, ordered), emit.op("And", below, ordered)
        above = emit.op("Or", above, emit.op("Not", ordered))
    zero = emit.scalar(0.0, like=x)
    dx, dlow, dhigh = (None if at is None else emit.op("Where", at, upstream[0], zero) for at in (inside, below, above))
    return dx, _whole(dlow, low, emit), _whole(dhigh, high, emit)


def _may_cross(low: ir.Value | None, high: ir.Value | None) -> bool:
    numbers = known_number(low), known_number(high)
    return numbers[0] is None or numbers[1] is None or numbers[0] > numbers[1]


def _whole(gradient: ir.Value | None, bound: ir.Value | None, emit: Emitter) -> ir.Value | None:
    """The sum of all elements, in the shape of a bound: a scalar or, as ONNX Runtime takes it, one element."""
    if gradient is None or bound is None:
        return None
    return reshaped_like(emit.op("ReduceSum", gradient, keepdims=0), [], bound, emit)


@rule("Dropout")
def dropout(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    training = present(node, 2)
    content = known(training)
    if training is not None and content is None:
        raise NoGradientForCase(node, "only the run knows its training_mode", "make training_mode a constant")
    if content is None or not content.any():
        return (upstream[0],)
    if len(node.outputs) < 2:
        node.resize_outputs(2)
        node.outputs[1].name = f"{node.outputs[0].name}.mask"
    node.outputs[1].dtype = ir.DataType.BOOL
    scaled = emit.op("Div", upstream[0], _kept(node, emit))
    return (emit.op("Where", node.outputs[1], scaled, emit.scalar(0.0, like=first(node))),)


def _kept(node: ir.Node, emit: Emitter) -> ir.Value:
    """The fraction of elements that a Dropout keeps."""
    x, ratio = first(node), present(node, 1)
    number = 0.5 if ratio is None else known_number(ratio)
    if number is not None:
        return emit.scalar(1 - number, like=x)
    assert ratio is not None and x.dtype is not None
    return emit.op("Sub", emit.scalar(1.0, like=x), emit.op("Cast", ratio, to=int(x.dtype)))
