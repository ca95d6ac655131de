"""Ensures that a frozen BatchNormalization after convolutions costs nothing: its factors are part of their weights.

Pattern, with each of the values between read once, and a constant number c:

* ``BatchNormalization(Conv(x, w, b))``;
* ``BatchNormalization(Add(Conv(x, w, b), Mul(Conv(u, v), c)))``, as LoRA has it, in any nesting of ``Add`` and ``Mul``.

Algebra: with s = scale / sqrt(variance + ε) per channel, ``s (w x + b + c (v u) - mean) + bias`` is
``(s w) x + (c s v) u + (s (b - mean) + bias)``. Products with weights are small, and ONNX Runtime computes those of
frozen weights when it loads the graph. Scale, mean and variance are frozen. A bias that trains becomes a convolution's
bias, or is added after a depthwise one: ONNX Runtime runs that fast only where its bias is constant.

For train graphs. The graphs that updates are merged into keep the weights of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.constants import constant_factor, known, new_initializer
from edgepeft_export.graph.edit import eliminate_node
from edgepeft_export.graph.match import operand, present, producer_of
from edgepeft_export.graph.shapes import rank

Factors = NDArray[np.float64]
"""One number per channel."""


@dataclass
class _Sum:
    """The inputs of a normalization.

    Attributes:
        convolutions: each with the number that its result is multiplied by.
        scalings: the nodes that do so.
    """

    convolutions: list[tuple[ir.Node, float]] = field(default_factory=list)
    scalings: list[ir.Node] = field(default_factory=list)


def fold_norms(model: ir.Model) -> bool:
    """Fold normalizations into convolutions, in place. Returns whether there was one to fold."""
    norms = [node for node in model.graph if node.op_type == "BatchNormalization" and not node.domain]
    folded = [_fold(node, model.graph) for node in norms]
    return any(folded)


def _fold(norm: ir.Node, graph: ir.Graph) -> bool:
    scale, mean, variance = (known(norm.inputs[index]) for index in (1, 3, 4))
    in_training = norm.attributes.get_int("training_mode", 0) or len(norm.outputs) > 1
    if scale is None or mean is None or variance is None or in_training or scale.dtype != np.float32:
        return False
    found = _Sum()
    if not _collect(operand(norm), 1.0, found):
        return False
    epsilon = float(norm.attributes.get_float("epsilon", 1e-5))
    factors: Factors = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    for conv, number in found.convolutions:
        _scale(conv, factors * number, graph)
    shift = _before(norm, "Add", operand(norm, 2), _vector(-mean.astype(np.float64) * factors, norm, graph))
    for node in found.scalings:
        eliminate_node(node, 0 if known(node.inputs[0]) is None else 1)
    first = found.convolutions[0][0]
    if known(operand(norm, 2)) is None and int(first.attributes.get_int("group", 1)) > 1:
        columns = [len(factors)] + [1] * (rank(norm.outputs[0]) - 2)
        column = _before(norm, "Reshape", shift, new_initializer(graph, "channels.shape", np.asarray(columns)))
        column.shape = ir.Shape(columns)
        added = _before(norm, "Add", operand(norm), column)
        norm.replace_input_with(0, added)
    else:
        _add_bias(first, shift)
    eliminate_node(norm, 0)
    return True


def _collect(value: ir.Value, number: float, found: _Sum) -> bool:
    """Find the convolutions whose sum ``value`` is; ``False`` where it is something else, or read elsewhere."""
    node = value.producer()
    if node is None or node.domain or value.is_graph_output() or len(list(value.uses())) != 1:
        return False
    if node.op_type == "Conv":
        found.convolutions.append((node, number))
        return _can_scale(operand(node, 1))
    if node.op_type == "Add":
        return all(_collect(read, number, found) for read in node.inputs if read is not None)
    factor = constant_factor(value) if node.op_type == "Mul" else None
    if factor is None:
        return False
    found.scalings.append(node)
    return _collect(factor[1], number * factor[0], found)


def _can_scale(weight: ir.Value) -> bool:
    """Whether a weight is float, or quantized with one scale per output channel."""
    dequantize = producer_of(weight, "DequantizeLinear")
    if dequantize is None:
        return weight.shape is not None and weight.dtype == ir.DataType.FLOAT
    scale = known(operand(dequantize, 1))
    return scale is not None and scale.ndim == 1 and int(dequantize.attributes.get_int("axis", 1)) == 0


def _scale(conv: ir.Node, factors: Factors, graph: ir.Graph) -> None:
    """Multiply a convolution's result by a number per channel, by way of its weight and bias."""
    weight, bias = operand(conv, 1), present(conv, 2)
    dequantize = producer_of(weight, "DequantizeLinear")
    if dequantize is None:
        columns = [-1] + [1] * (rank(weight) - 1)
        scaled = _before(conv, "Mul", weight, _vector(factors, conv, graph, columns))
    else:
        scale = known(operand(dequantize, 1))
        assert scale is not None
        inputs = [
            dequantize.inputs[0],
            _vector(scale.astype(np.float64) * factors, conv, graph),
            *dequantize.inputs[2:],
        ]
        scaled = _before(conv, "DequantizeLinear", *inputs, attributes={"axis": 0})
    scaled.shape, scaled.type = weight.shape, weight.type
    conv.replace_input_with(1, scaled)
    if bias is not None:
        conv.replace_input_with(2, _before(conv, "Mul", bias, _vector(factors, conv, graph)))


def _add_bias(conv: ir.Node, shift: ir.Value) -> None:
    made = shift.producer()
    assert made is not None and conv.graph is not None
    conv.graph.remove(made)
    conv.prepend(made)
    bias = present(conv, 2)
    if bias is not None:
        shift = _before(conv, "Add", bias, shift)
    conv.resize_inputs(3)
    conv.replace_input_with(2, shift)


def _vector(numbers: Factors, node: ir.Node, graph: ir.Graph, shape: Sequence[int] = (-1,)) -> ir.Value:
    return new_initializer(graph, f"{node.name}.folded", numbers.astype(np.float32).reshape(shape))


def _before(
    node: ir.Node, op_type: str, *inputs: ir.Value | None, attributes: dict[str, int] | None = None
) -> ir.Value:
    """A node in front of ``node``, whose result has the dtype, and by default the shape, of its first input."""
    made = ir.node(op_type, inputs, attributes or {}, name=f"{node.name}/folded/{op_type}")
    result, first = made.outputs[0], inputs[0]
    assert first is not None
    result.shape, result.type = first.shape, first.type
    node.prepend(made)
    return result
