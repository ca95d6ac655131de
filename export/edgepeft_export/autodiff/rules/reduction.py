"""Reductions along axes: an attribute in older opsets, an input since 13 (ReduceSum) and 18 (the others)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.reading import known_axes, reciprocal, static_size
from edgepeft_export.autodiff.rules.steps import sign
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import dims_of, dtype_of, rank


def _does_nothing(node: ir.Node) -> bool:
    """Whether ``noop_with_empty_axes`` is known to make the node return its input."""
    empty = known_axes(node, rank(operand(node))) == []
    return empty and bool(node.attributes.get_int("noop_with_empty_axes", 0))


def _may_do_nothing(node: ir.Node) -> bool:
    """Whether the axes may turn out to be empty at run time with ``noop_with_empty_axes``."""
    axes = present(node, 1)
    if not node.attributes.get_int("noop_with_empty_axes", 0) or known_axes(node, rank(operand(node))) is not None:
        return False
    count = dims_of(axes)[0] if axes is not None else 0
    return not (isinstance(count, int) and count > 0)


def _along_input(value: ir.Value, node: ir.Node, emit: Emitter) -> ir.Value:
    """Put the reduced dimensions back, as 1, into a value of the output's shape: it broadcasts against the input."""
    if node.attributes.get_int("keepdims", 1):
        return value
    axes = known_axes(node, rank(operand(node)))
    if axes is None:
        return emit.op("Unsqueeze", value, present(node, 1))
    # Without axes everything was reduced, and a scalar broadcasts.
    return emit.op("Unsqueeze", value, emit.ints(*axes)) if axes else value


def _pair_along_input(node: ir.Node, dy: ir.Value, emit: Emitter) -> tuple[ir.Value, ir.Value]:
    """The output and its gradient, ready to broadcast against the input."""
    if _does_nothing(node) or _may_do_nothing(node):
        raise NoGradientForCase(
            node, "releases of ONNX Runtime differ on what it computes without axes", "give it axes"
        )
    return _along_input(node.outputs[0], node, emit), _along_input(dy, node, emit)


def _over_input(value: ir.Value, node: ir.Node, emit: Emitter) -> ir.Value:
    return emit.op("Expand", value, emit.shape_of(operand(node)))


@rule("ReduceSum")
def reduce_sum(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    if _does_nothing(node):
        return (dy,)
    return (_over_input(_along_input(dy, node, emit), node, emit),)


@rule("ReduceMean")
def reduce_mean(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    if _does_nothing(node):
        return (dy,)
    return reduce_sum(node, _divided_by_count(dy, node, emit), emit)


def _divided_by_count(value: ir.Value, node: ir.Node, emit: Emitter) -> ir.Value:
    """Divide by the number of elements that the node averages into one."""
    x, y = operand(node), node.outputs[0]
    dims = dims_of(x)
    axes = known_axes(node, len(dims))
    count = None if axes is None else static_size([dims[axis] for axis in axes or range(len(dims))])
    if count is not None:
        return emit.op("Mul", value, emit.scalar(1 / max(count, 1), like=x))
    whole, reduced = (emit.op("Max", emit.op("Size", of), emit.constant(np.asarray(1))) for of in (x, y))
    return emit.op("Mul", value, reciprocal(emit.op("Div", whole, reduced), x, emit))


@rule("ReduceMax", "ReduceMin")
def reduce_extremum(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Elements that tie for the extremum split the gradient evenly."""
    if _does_nothing(node):
        return (dy,)
    x = operand(node)
    y, dy = _pair_along_input(node, dy, emit)
    attains = emit.cast(emit.op("Equal", x, y), dtype_of(x))
    return (emit.op("Mul", attains, emit.op("Div", dy, _reduce("ReduceSum", attains, node, emit))),)


def _reduce(op_type: str, value: ir.Value, node: ir.Node, emit: Emitter) -> ir.Value:
    """Reduce over the node's axes, keeping the dimensions."""
    axes = known_axes(node, rank(operand(node)))
    if axes is None:
        noop = int(node.attributes.get_int("noop_with_empty_axes", 0))
        return emit.op(op_type, value, present(node, 1), keepdims=1, noop_with_empty_axes=noop)
    return emit.op(op_type, value, emit.ints(*axes) if axes else None, keepdims=1)


@rule("ReduceProd")
def reduce_prod(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dy times the product of the *other* elements, which is not 0 for an element that is the only zero."""
    if _does_nothing(node):
        return (dy,)
    x = operand(node)
    zero = emit.scalar(0.0, like=x)
    is_zero = emit.op("Equal", x, zero)
    nonzero = emit.op("Where", is_zero, emit.scalar(1.0, like=x), x)
    product = _reduce("ReduceProd", nonzero, node, emit)
    counted = emit.cast(is_zero, dtype_of(x))
    no_other_zero = emit.op("Equal", _reduce("ReduceSum", counted, node, emit), counted)
    others = emit.op("Where", no_other_zero, emit.op("Div", product, nonzero), zero)
    return (emit.op("Mul", _along_input(dy, node, emit), others),)


@rule("ReduceL1")
def reduce_l1(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    _, dy = _pair_along_input(node, dy, emit)
    return (emit.op("Mul", dy, sign(operand(node), emit)),)


@rule("ReduceL2")
def reduce_l2(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """x dy / y, and 0 where y is 0."""
    y, dy = _pair_along_input(node, dy, emit)
    zero = emit.scalar(0.0, like=operand(node))
    ratio = emit.op("Where", emit.op("Equal", y, zero), zero, emit.op("Div", dy, y))
    return (emit.op("Mul", node.inputs[0], ratio),)


@rule("ReduceSumSquare")
def reduce_sum_square(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    _, dy = _pair_along_input(node, dy, emit)
    return (emit.op("Mul", node.inputs[0], emit.op("Mul", dy, emit.scalar(2.0, like=operand(node)))),)


@rule("ReduceLogSum")
def reduce_log_sum(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    y, dy = _pair_along_input(node, dy, emit)
    return (_over_input(emit.op("Div", dy, emit.op("Exp", y)), node, emit),)


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    y, dy = _pair_along_input(node, dy, emit)
    return (emit.op("Mul", dy, emit.op("Exp", emit.op("Sub", node.inputs[0], y))),)


@rule("CumSum")
def cum_sum(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    backwards = 1 - int(node.attributes.get_int("reverse", 0))
    exclusive = int(node.attributes.get_int("exclusive", 0))
    return (emit.op("CumSum", dy, node.inputs[1], reverse=backwards, exclusive=exclusive),)
