"""Arithmetic on one or several tensors, element by element. The walk sums gradients of broadcast inputs."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import ZERO, Flat, Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.reading import narrow, reshaped_like
from edgepeft_export.autodiff.rules.steps import between, masked, sign
from edgepeft_export.graph.constants import known, known_number
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, operands, present, producer_of
from edgepeft_export.graph.shapes import dims_of, dtype_of, is_float


@rule("Add", broadcasts=True)
def add(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return dy, dy


@rule("Sum", broadcasts=True)
def sum_(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return [dy] * len(node.inputs)


@rule("Mean", broadcasts=True)
def mean(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return [emit.op("Mul", dy, emit.scalar(1 / len(node.inputs), like=operand(node)))] * len(node.inputs)


@rule("Sub", broadcasts=True)
def sub(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return dy, emit.op("Neg", dy)


@rule("Mul", broadcasts=True)
def mul(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    a, b = operands(node)
    for x, sigma in ((a, b), (b, a)):
        sigmoid = producer_of(sigma, "Sigmoid")
        if sigmoid is not None and not sigmoid.domain and operand(sigmoid) is x:
            dx = emit.op("Mul", dy, _swish_derivative(node.outputs[0], sigma, emit))
            return (dx, ZERO) if x is a else (ZERO, dx)
    return emit.op("Mul", _against(b, node, dy), b), emit.op("Mul", _against(a, node, dy), a)


def _swish_derivative(y: ir.Value, sigma: ir.Value, emit: Emitter) -> ir.Value:
    """σ + y (1 - σ), of y = x σ(x), without reading x. Term by term it would take two more passes."""
    return emit.op("Add", sigma, emit.op("Sub", y, emit.op("Mul", y, sigma)))


def _against(operand: ir.Value, node: ir.Node, dy: ir.Value | None) -> ir.Value | None:
    """The gradient to multiply by an operand. It need not be expanded where the operand has the output's shape."""
    dims = dims_of(operand)
    return narrow(dy) if None not in dims and dims == dims_of(node.outputs[0]) else dy


@rule("Div", broadcasts=True)
def div(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    da = emit.op("Div", dy, operand(node, 1))
    return da, emit.op("Neg", emit.op("Mul", da, node.outputs[0]))


@rule("Mod", broadcasts=True)
def mod(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    (a, b), y = node.inputs, node.outputs[0]
    # y = a - n b with an integer n, whichever way the operator rounds.
    minus_n = emit.op("Div", emit.op("Sub", y, a), b)
    # An infinite b leaves a unchanged, and the quotient is NaN there.
    whole = emit.op("Where", emit.op("IsNaN", minus_n), emit.scalar(0.0, like=operand(node)), minus_n)
    return dy, emit.op("Mul", dy, whole)


@rule("Pow", broadcasts=True)
def pow_(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    (base, exponent), y = operands(node), node.outputs[0]
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
    derivative = emit.op("Mul", dy, emit.op("Mul", power, emit.cast(exponent, dtype_of(base))))
    # 0 · 0^-1 would be NaN. A power with exponent 0 is constant.
    flat = emit.op("Equal", exponent, emit.scalar(0, like=exponent))
    return emit.op("Where", flat, emit.scalar(0.0, like=base), derivative)


def _power_of_exponent(base: ir.Value, exponent: ir.Value, y: ir.Value, dy: ir.Value, emit: Emitter) -> ir.Value | None:
    if not is_float(exponent):
        return None
    derivative = emit.op("Mul", dy, emit.op("Mul", y, emit.op("Log", base)))
    positive = emit.op("Greater", base, emit.scalar(0.0, like=base))
    return emit.cast(emit.op("Where", positive, derivative, emit.scalar(0.0, like=base)), dtype_of(exponent))


@rule("Neg")
def neg(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Neg", dy),)


@rule("Abs")
def abs_(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, sign(operand(node), emit)),)


@rule("Max", "Min", broadcasts=True)
def extremum(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Inputs that tie for an element's extremum split its gradient evenly, as with ``torch.maximum``."""
    if len(node.inputs) == 1:
        return (dy,)
    y = node.outputs[0]
    attains = [emit.cast(emit.op("Equal", value, y), dtype_of(value)) for value in operands(node)]
    each = emit.op("Div", dy, emit.add(attains))
    return [emit.op("Mul", each, mask) for mask in attains]


@rule("Identity")
def identity(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (dy,)


@rule("Cast", "CastLike")
def cast(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """The second input of CastLike contributes only its type."""
    x = operand(node)
    return emit.cast(dy, dtype_of(x)) if is_float(x) else None, ZERO


@rule("Where", broadcasts=True)
def where(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    condition, a, _ = operands(node)
    zero = emit.scalar(0.0, like=a)
    return None, emit.op("Where", condition, dy, zero), emit.op("Where", condition, zero, dy)


@rule("Clip")
def clip(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dy goes to x within the bounds, else to the bound. Where the bounds cross, the upper one gets all of it."""
    x, low, high = operand(node), present(node, 1), present(node, 2)
    numbers = known_number(low), known_number(high)
    if numbers[0] is not None and numbers[1] is not None and numbers[0] < numbers[1] and _is_convolved(x):
        return (emit.op("Mul", dy, between(node.outputs[0], numbers[0], numbers[1], emit)),)
    inside = emit.op("Equal", x, node.outputs[0])
    below = None if low is None else emit.op("Less", x, low)
    above = None if high is None else emit.op("Greater", x, high)
    if below is not None and above is not None and _may_cross(low, high):
        ordered = emit.op("LessOrEqual", low, high)
        inside, below = emit.op("And", inside, ordered), emit.op("And", below, ordered)
        above = emit.op("Or", above, emit.op("Not", ordered))
    dx, dlow, dhigh = (None if mask is None else masked(dy, mask, emit) for mask in (inside, below, above))
    return dx, _whole(dlow, low, emit), _whole(dhigh, high, emit)


def _is_convolved(x: ir.Value) -> bool:
    """Whether ``x`` is the result of a convolution, perhaps normalized or with something added.

    Then the derivative is read from the output, and is 0 on the bounds as well, as that of torch's ``relu6``. ONNX
    Runtime can clip within the convolution, and nothing keeps ``x``. Elsewhere x on a bound has the derivative 1, as in
    ``clamp``: a parameter that starts there has to train.
    """
    values = [x]
    for _ in range(3):
        producers = [producer for value in values if (producer := value.producer()) is not None]
        if any(producer.op_type == "Conv" for producer in producers):
            return True
        through = [producer for producer in producers if producer.op_type in ("Add", "Sum", "BatchNormalization")]
        values = [value for producer in through for value in producer.inputs if value is not None]
    return False


def _may_cross(low: ir.Value | None, high: ir.Value | None) -> bool:
    numbers = known_number(low), known_number(high)
    return numbers[0] is None or numbers[1] is None or numbers[0] > numbers[1]


def _whole(gradient: ir.Value | None, bound: ir.Value | None, emit: Emitter) -> ir.Value | None:
    """The sum of all elements, in the shape of a bound: a scalar or, as ONNX Runtime also accepts, one element."""
    if gradient is None or bound is None:
        return None
    return reshaped_like(emit.op("ReduceSum", gradient, keepdims=0), [], bound, emit)


@rule("Dropout")
def dropout(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    training = present(node, 2)
    content = known(training)
    if training is not None and content is None:
        raise NoGradientForCase(node, "only the run knows its training_mode", "make training_mode a constant")
    if content is None or not content.any():
        return dy, ZERO  # it is the identity, whatever its ratio
    if len(node.outputs) < 2:
        node.resize_outputs(2)
        node.outputs[1].name = f"{node.outputs[0].name}.mask"
    node.outputs[1].dtype = ir.DataType.BOOL
    scaled = emit.op("Div", dy, _kept(node, emit))
    return (masked(scaled, node.outputs[1], emit),)


def _kept(node: ir.Node, emit: Emitter) -> ir.Value:
    """The fraction of elements that a Dropout keeps."""
    x, ratio = operand(node), present(node, 1)
    number = 0.5 if ratio is None else known_number(ratio)
    if number is not None:
        return emit.scalar(1 - number, like=x)
    return emit.op("Sub", emit.scalar(1.0, like=x), emit.cast(operand(node, 1), dtype_of(x)))
