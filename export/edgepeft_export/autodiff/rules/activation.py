"""Functions of one number, element by element. A derivative reads the output where that is cheaper than the input."""

from __future__ import annotations

from math import log, pi, sqrt

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, rule
from edgepeft_export.autodiff.rules.reading import narrow
from edgepeft_export.autodiff.rules.steps import between, masked, step
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, operands
from edgepeft_export.graph.shapes import dims_of


def _float(node: ir.Node, name: str, default: float) -> float:
    return float(node.attributes.get_float(name, default))


@rule("Relu")
def relu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dy · (1 where y > 0, else 0)."""
    y = node.outputs[0]
    return (emit.op("Mul", narrow(dy), step(y, emit)),)


@rule("ThresholdedRelu")
def thresholded_relu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    x = operand(node)
    return (masked(dy, emit.op("Greater", x, emit.scalar(_float(node, "alpha", 1.0), like=x)), emit),)


@rule("Shrink")
def shrink(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    x = operand(node)
    passes = emit.op("Greater", emit.op("Abs", x), emit.scalar(_float(node, "lambd", 0.5), like=x))
    return (masked(dy, passes, emit),)


@rule("LeakyRelu")
def leaky_relu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, _bent(operand(node), _float(node, "alpha", 0.01), 1.0, emit)),)


@rule("PRelu", broadcasts=True)
def prelu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """The derivative is w + (1 - w) · (1 where x > 0, else 0), with the trained factor w below 0."""
    x, below = operands(node)
    rest = emit.op("Sub", emit.scalar(1.0, like=below), below)
    derivative = emit.op("Add", emit.op("Mul", step(x, emit), rest), below)
    return emit.op("Mul", dy, derivative), emit.op("Mul", dy, emit.op("Min", x, emit.scalar(0.0, like=x)))


@rule("Elu")
def elu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, _exponential_below(node, _float(node, "alpha", 1.0), 1.0, emit)),)


@rule("Selu")
def selu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    alpha = _float(node, "alpha", 1.67326319217681884765625)
    gamma = _float(node, "gamma", 1.05070102214813232421875)
    return (emit.op("Mul", dy, _exponential_below(node, alpha * gamma, gamma, emit)),)


@rule("Celu")
def celu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """1 + min(y, 0) / α."""
    scaled = emit.op("Mul", _negative_part(node, emit), emit.scalar(1 / _float(node, "alpha", 1.0), like=operand(node)))
    return (emit.op("Mul", dy, emit.op("Add", scaled, emit.scalar(1.0, like=operand(node)))),)


def _exponential_below(node: ir.Node, scale: float, above: float, emit: Emitter) -> ir.Value:
    """``above`` where x > 0, else the derivative of y = scale (exp(x) - 1), which is y + scale."""
    x, below = operand(node), _negative_part(node, emit)
    return emit.op("Add", below, emit.scalar(scale, like=x) if scale == above else _bent(x, scale, above, emit))


def _negative_part(node: ir.Node, emit: Emitter) -> ir.Value:
    """min(y, 0)."""
    return emit.op("Min", node.outputs[0], emit.scalar(0.0, like=operand(node)))


def _bent(x: ir.Value, below: float, above: float, emit: Emitter) -> ir.Value:
    """``above`` where x > 0, else ``below``."""
    raised = emit.op("Mul", step(x, emit), emit.scalar(above - below, like=x))
    return emit.op("Add", raised, emit.scalar(below, like=x))


@rule("Gelu")
def gelu(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    if node.attributes.get_string("approximate", "none") == "tanh":
        return (emit.op("Mul", dy, _gelu_tanh_derivative(node, emit)),)
    if operand(node).dtype == ir.DataType.FLOAT and not node.outputs[0].is_graph_output():
        return (emit.op("Mul", dy, _with_derivative(node, emit)),)
    return (emit.op("Mul", dy, _gelu_erf_derivative(operand(node), emit)),)


def _with_derivative(node: ir.Node, emit: Emitter) -> ir.Value:
    """Let a forward GELU be computed with its derivative, from one Erf; returns the derivative.

    Only the derivative is kept for the backward pass, not x: y has its shape read from the derivative, without which
    ONNX Runtime would compute that when the backward pass needs it, and keep what it is made of.
    """
    x, y = operand(node), node.outputs[0]

    def add(op_type: str, *inputs: ir.Value, **attributes: float) -> ir.Value:
        new = ir.node(op_type, inputs, attributes, name=f"{node.name}/{op_type}")
        new.outputs[0].type, new.outputs[0].shape = x.type, x.shape
        node.prepend(new)
        return new.outputs[0]

    s = add("Mul", x, emit.scalar(sqrt(0.5), like=x))
    cdf = add("HardSigmoid", add("Erf", s), alpha=0.5, beta=0.5)  # ½ + ½ erf in one pass; it never leaves 0 to 1
    bell = add("Exp", add("Sub", emit.scalar(-0.5 * log(pi), like=x), add("Mul", s, s)))
    derivative = add("Add", cdf, add("Mul", s, bell))
    product, size = add("Mul", x, cdf), add("Shape", derivative)
    size.type, size.shape = (
        ir.TensorType(ir.DataType.INT64),
        ir.Shape([len(dims_of(x))]) if x.shape is not None else None,
    )
    result = add("Reshape", product, size)
    y.replace_all_uses_with(result)
    return derivative


def _gelu_erf_derivative(x: ir.Value, emit: Emitter) -> ir.Value:
    """Φ(x) + x φ(x), with s = x / √2: ½ + ½ erf(s) + s exp(-s²) / √π."""
    s = emit.op("Mul", x, emit.scalar(sqrt(0.5), like=x))
    erf = emit.op("Erf", s)
    if x.dtype == ir.DataType.FLOAT:
        cdf = emit.op("HardSigmoid", erf, alpha=0.5, beta=0.5)  # ½ + ½ erf in one pass; it never leaves 0 to 1
    else:
        cdf = emit.op("Add", emit.op("Mul", erf, emit.scalar(0.5, like=x)), emit.scalar(0.5, like=x))
    bell = emit.op("Exp", emit.op("Sub", emit.scalar(-0.5 * log(pi), like=x), emit.op("Mul", s, s)))
    return emit.op("Add", cdf, emit.op("Mul", s, bell))


def _gelu_tanh_derivative(node: ir.Node, emit: Emitter) -> ir.Value:
    """Derivative of y = x σ(z), z = x (a + b x²), which is ½ x (1 + tanh(z / 2)): σ + y z' (1 - σ), z' = a + 3 b x²."""
    x, y = operand(node), node.outputs[0]
    a = 2 * sqrt(2 / pi)
    cubic = emit.op("Mul", emit.op("Mul", x, x), emit.scalar(0.044715 * a, like=x))
    z = emit.op("Mul", x, emit.op("Add", cubic, emit.scalar(a, like=x)))
    dz = emit.op("Add", emit.op("Mul", cubic, emit.scalar(3.0, like=x)), emit.scalar(a, like=x))
    sigma = emit.op("Sigmoid", z)
    whole = emit.op("Mul", y, dz)
    return emit.op("Add", sigma, emit.op("Sub", whole, emit.op("Mul", whole, sigma)))


@rule("Sigmoid")
def sigmoid(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    y = node.outputs[0]
    return (emit.op("Mul", dy, emit.op("Sub", y, emit.op("Mul", y, y))),)


@rule("Tanh")
def tanh(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    y = node.outputs[0]
    derivative = emit.op("Sub", emit.scalar(1.0, like=operand(node)), emit.op("Mul", y, y))
    return (emit.op("Mul", dy, derivative),)


@rule("Softplus")
def softplus(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, emit.op("Sigmoid", node.inputs[0])),)


@rule("Softsign")
def softsign(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """y = x / (1 + |x|), so y' = (1 - |y|)²."""
    root = emit.op("Sub", emit.scalar(1.0, like=operand(node)), emit.op("Abs", node.outputs[0]))
    return (emit.op("Mul", dy, emit.op("Mul", root, root)),)


@rule("HardSigmoid")
def hard_sigmoid(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    y = node.outputs[0]
    scaled = emit.op("Mul", dy, emit.scalar(_float(node, "alpha", 0.2), like=operand(node)))
    return (emit.op("Mul", scaled, between(y, 0.0, 1.0, emit)),)


@rule("HardSwish")
def hard_swish(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """y = x h with h = clip(x/6 + ½, 0, 1): h, and x/6 more where |x| < 3."""
    x = operand(node)
    more = emit.op("Mul", between(x, -3.0, 3.0, emit), emit.op("Mul", x, emit.scalar(1 / 6, like=x)))
    return (emit.op("Mul", dy, emit.op("Add", emit.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), more)),)


@rule("Mish")
def mish(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """x t with t = tanh(softplus(x)): t + x σ(x) (1 - t²)."""
    x = operand(node)
    t = emit.op("Tanh", emit.op("Softplus", x))
    bend = emit.op("Sub", emit.scalar(1.0, like=x), emit.op("Mul", t, t))
    tail = emit.op("Mul", emit.op("Mul", x, emit.op("Sigmoid", x)), bend)
    return (emit.op("Mul", dy, emit.op("Add", t, tail)),)


@rule("Erf")
def erf(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """2/√π exp(-x²), with the factor moved into the exponent."""
    x = operand(node)
    exponent = emit.op("Sub", emit.scalar(log(2 / sqrt(pi)), like=x), emit.op("Mul", x, x))
    return (emit.op("Mul", dy, emit.op("Exp", exponent)),)
