"""Normalizations. Statistics come from the forward node where it can give them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgepeft_export.autodiff.registry import ZERO, Gradients, NoGradientForCase, Upstream, only, rule, rule_of_outputs
from edgepeft_export.autodiff.rules.reading import axis_of, channel_shape, reciprocal, reshaped_like
from edgepeft_export.autodiff.rules.steps import sign
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, operands, present
from edgepeft_export.graph.shapes import dims_of, dtype_of, rank
from edgepeft_export.opset import OPSET


@rule_of_outputs("LayerNormalization", 3)
def layer_normalization(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """The second and third outputs, mean and 1/σ, may be read too."""
    (dy, *of_statistics), (x, scale) = upstream, operands(node, 2)
    bias = present(node, 2)
    dims = dims_of(x)
    axes = list(range(axis_of(node, -1, len(dims)), len(dims)))
    mean, inverse = _statistics(node, x, emit)
    centred = emit.op("Sub", x, mean)
    direct = _from_statistics(of_statistics, x, centred, inverse, axes, emit)
    if dy is None:
        return direct, ZERO, ZERO
    dx = _through_statistics(emit.op("Mul", dy, scale), centred, inverse, axes, emit)
    dscale = emit.sum_to(emit.op("Mul", emit.op("Mul", dy, centred), inverse), dims, scale)
    dbias = emit.sum_to(dy, dims, bias) if bias is not None else None
    return dx if direct is None else emit.op("Add", dx, direct), dscale, dbias


def _from_statistics(
    upstream: Upstream, x: ir.Value, centred: ir.Value, inverse: ir.Value, axes: Sequence[int], emit: Emitter
) -> ir.Value | None:
    """From the gradients of mean m and s = 1/σ to that of x: (dm - s³ c ds) / D, of D elements with c = x - m."""
    dmean, dinverse = (
        None if value is None else emit.cast(value, dtype_of(centred)) for value in (*upstream, None, None)[:2]
    )
    if dmean is None and dinverse is None:
        return None
    parts = [] if dmean is None else [dmean]
    if dinverse is not None:
        cubed = emit.op("Mul", inverse, emit.op("Mul", inverse, inverse))
        parts.append(emit.op("Neg", emit.op("Mul", centred, emit.op("Mul", cubed, dinverse))))
    count = emit.op("ReduceProd", emit.op("Gather", emit.op("Shape", centred), emit.ints(*axes)), keepdims=0)
    return emit.op("Expand", emit.op("Mul", emit.add(parts), reciprocal(count, centred, emit)), emit.shape_of(x))


def _statistics(node: ir.Node, x: ir.Value, emit: Emitter) -> list[ir.Value]:
    """Mean and 1/σ, as outputs of the forward node itself."""
    if len(node.outputs) < 3:
        node.resize_outputs(3)
    for output, name in zip(node.outputs[1:], ("mean", "inv_std_dev"), strict=True):
        output.name = output.name or f"{node.outputs[0].name}.{name}"
        output.dtype = ir.DataType(int(node.attributes.get_int("stash_type", 1)))
    return [emit.cast(value, dtype_of(x)) for value in node.outputs[1:]]


def _through_statistics(
    gradient: ir.Value, centred: ir.Value, inverse: ir.Value, axes: Sequence[int], emit: Emitter
) -> ir.Value:
    """From the gradient g of x̂ = c / σ, c = x - mean, to that of x: (g - mean(g) - c mean(g c) / σ²) / σ."""
    over = emit.ints(*axes)
    product = emit.op("ReduceMean", emit.op("Mul", gradient, centred), over, keepdims=1)
    derivative = emit.op("Mul", product, emit.op("Mul", inverse, inverse))
    level = emit.op("ReduceMean", gradient, over, keepdims=1)
    rest = emit.op("Sub", emit.op("Sub", gradient, emit.op("Mul", centred, derivative)), level)
    return emit.op("Mul", rest, inverse)


def _recomputed(x: ir.Value, axes: Sequence[int], epsilon: float, emit: Emitter) -> tuple[ir.Value, ir.Value]:
    """x - mean and 1/σ of ``x`` over ``axes``."""
    over = emit.ints(*axes)
    centred = emit.op("Sub", x, emit.op("ReduceMean", x, over, keepdims=1))
    variance = emit.op("ReduceMean", emit.op("Mul", centred, centred), over, keepdims=1)
    deviation = emit.op("Sqrt", emit.op("Add", variance, emit.scalar(epsilon, like=x)))
    return centred, emit.op("Reciprocal", deviation)


@rule("InstanceNormalization")
def instance_normalization(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    x, scale, _ = operands(node)
    spatial = list(range(2, rank(x)))
    centred, inverse = _recomputed(x, spatial, float(node.attributes.get_float("epsilon", 1e-5)), emit)
    gradient = emit.op("Mul", dy, emit.op("Reshape", scale, emit.ints(*channel_shape(x))))
    dx = _through_statistics(gradient, centred, inverse, spatial, emit)
    dscale = _per_channel(emit.op("Mul", emit.op("Mul", dy, centred), inverse), x, emit)
    return dx, dscale, _per_channel(dy, x, emit)


def _per_channel(value: ir.Value, x: ir.Value, emit: Emitter) -> ir.Value:
    """Sum over all axes but 1."""
    return emit.op("ReduceSum", value, emit.ints(0, *range(2, rank(x))), keepdims=0)


@rule("GroupNormalization")
def group_normalization(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Each group of channels, flattened, is normalized on its own.

    Scale and bias are per group in opset 18 and per channel since 21.
    """
    x, scale = operands(node, 2)
    groups = int(node.attributes["num_groups"].as_int())
    epsilon = float(node.attributes.get_float("epsilon", 1e-5))
    per_group = emit.graph.opset_imports.get("", OPSET) < 21
    # [N, G, D] where scale is per group, [N, G, C/G, D] where it is per channel.
    split = [0, groups, -1] if per_group else [0, groups, _channels(node, x) // groups, -1]
    axes = list(range(2, len(split)))
    flat_x, flat_dy = (emit.op("Reshape", value, emit.ints(*split)) for value in (x, dy))
    centred, inverse = _recomputed(flat_x, axes, epsilon, emit)
    lined_up = emit.op("Reshape", scale, emit.ints(*split[1:-1], 1))
    dx = _through_statistics(emit.op("Mul", flat_dy, lined_up), centred, inverse, axes, emit)
    summed = [
        emit.op("Reshape", emit.op("ReduceSum", value, emit.ints(0, len(split) - 1), keepdims=0), emit.ints(-1))
        for value in (emit.op("Mul", emit.op("Mul", flat_dy, centred), inverse), flat_dy)
    ]
    return reshaped_like(dx, None, x, emit), *summed


def _channels(node: ir.Node, x: ir.Value) -> int:
    channels = dims_of(x)[1]
    if not isinstance(channels, int):
        raise NoGradientForCase(node, "the number of channels is not known", "declare the channels of its input")
    return channels


@rule_of_outputs("BatchNormalization")
def batch_normalization(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    if node.attributes.get_int("training_mode", 0) or any(output.name for output in node.outputs[1:]):
        raise NoGradientForCase(
            node, "stock ONNX Runtime has no BatchNormalization in training mode", "export the model in eval mode"
        )
    dy, (x, scale, _, mean, variance) = only(upstream), operands(node)
    epsilon = emit.scalar(float(node.attributes.get_float("epsilon", 1e-5)), like=mean)
    inverse = emit.op("Reciprocal", emit.op("Sqrt", emit.op("Add", variance, epsilon)))
    factor = emit.op("Mul", scale, inverse)
    line_up = emit.ints(*channel_shape(x))
    dx = emit.op("Mul", dy, emit.op("Reshape", factor, line_up))
    centred = emit.op("Sub", x, emit.op("Reshape", mean, line_up))
    dbias = _per_channel(dy, x, emit)
    dscale = emit.op("Mul", _per_channel(emit.op("Mul", dy, centred), x, emit), inverse)
    dmean = emit.op("Neg", emit.op("Mul", factor, dbias))
    half = emit.op("Mul", emit.op("Mul", factor, inverse), emit.scalar(-0.5, like=mean))
    return dx, dscale, dbias, dmean, emit.op("Mul", half, dscale)


@rule("LpNormalization")
def lp_normalization(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """y = x / |x|: (dy - s Σ dy y) / |x| with s = y (p = 2) or sign(x) (p = 1); 0 where the norm is 0."""
    x, y = operand(node), node.outputs[0]
    axis = emit.ints(axis_of(node, -1, rank(x)))
    power = int(node.attributes.get_int("p", 2))
    norm = emit.op(f"ReduceL{power}", x, axis, keepdims=1)
    along = y if power == 2 else sign(x, emit)
    total = emit.op("ReduceSum", emit.op("Mul", dy, y), axis, keepdims=1)
    zero = emit.scalar(0.0, like=x)
    inverse = emit.op("Where", emit.op("Equal", norm, zero), zero, emit.op("Reciprocal", norm))
    return (emit.op("Mul", emit.op("Sub", dy, emit.op("Mul", along, total)), inverse),)
