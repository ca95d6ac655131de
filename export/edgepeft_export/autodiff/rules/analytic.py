"""Exponential, trigonometric and hyperbolic functions and their inverses."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, rule
from edgepeft_export.autodiff.rules.reading import narrow
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand


@rule("Exp")
def exp(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", narrow(dy), node.outputs[0]),)


@rule("Log")
def log(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Div", dy, node.inputs[0]),)


@rule("Sqrt")
def sqrt(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    half = emit.op("Mul", dy, emit.scalar(0.5, like=operand(node)))
    return (emit.op("Div", half, node.outputs[0]),)


@rule("Reciprocal")
def reciprocal(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    y = node.outputs[0]
    return (emit.op("Neg", emit.op("Mul", dy, emit.op("Mul", y, y))),)


@rule("Sin")
def sin(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, emit.op("Cos", node.inputs[0])),)


@rule("Cos")
def cos(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Neg", emit.op("Mul", dy, emit.op("Sin", node.inputs[0]))),)


@rule("Tan")
def tan(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, _square_plus(node.outputs[0], 1.0, emit)),)


@rule("Asin")
def asin(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Div", dy, emit.op("Sqrt", _one_minus_square(operand(node), emit))),)


@rule("Acos")
def acos(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Neg", emit.op("Div", dy, emit.op("Sqrt", _one_minus_square(operand(node), emit)))),)


@rule("Atan")
def atan(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Div", dy, _square_plus(operand(node), 1.0, emit)),)


@rule("Sinh")
def sinh(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, emit.op("Cosh", node.inputs[0])),)


@rule("Cosh")
def cosh(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Mul", dy, emit.op("Sinh", node.inputs[0])),)


@rule("Asinh")
def asinh(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Div", dy, emit.op("Sqrt", _square_plus(operand(node), 1.0, emit))),)


@rule("Acosh")
def acosh(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Div", dy, emit.op("Sqrt", _square_plus(operand(node), -1.0, emit))),)


@rule("Atanh")
def atanh(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    return (emit.op("Div", dy, _one_minus_square(operand(node), emit)),)


def _square_plus(value: ir.Value, number: float, emit: Emitter) -> ir.Value:
    return emit.op("Add", emit.op("Mul", value, value), emit.scalar(number, like=value))


def _one_minus_square(value: ir.Value, emit: Emitter) -> ir.Value:
    return emit.op("Sub", emit.scalar(1.0, like=value), emit.op("Mul", value, value))
