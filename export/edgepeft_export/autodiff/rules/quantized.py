"""Matmuls with quantized weights, and rounded activations.

The weights are frozen, so a gradient only has to cross them: it is multiplied by the same quantized bytes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.scores import any_scores, cross_entropy
from edgepeft_export.autodiff.rules.steps import masked
from edgepeft_export.graph.constants import known, zero_point_is_zero
from edgepeft_export.graph.custom_ops import (
    CONTRIB,
    DOMAIN,
    FAKE_QUANTIZE,
    INT8_MATMUL,
    NO_GRADIENT,
    SCORES,
    TRANSPOSED,
    int8_matmul,
)
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.rounding import pack_nibbles, unpack_nibbles
from edgepeft_export.graph.shapes import dims_of


@rule(INT8_MATMUL, domain=DOMAIN)
def int8_matmul_rule(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dx = (dy · scale) Wᵀ, where W are the integers. The scales lie along the summed axis, so they come first."""
    return _crossed(node, dy, emit), None, None, None, _bias_gradient(node, dy, present(node, 4), emit), None, None


def _bias_gradient(node: ir.Node, dy: ir.Value, bias: ir.Value | None, emit: Emitter) -> ir.Value | None:
    return None if bias is None else emit.sum_to(dy, dims_of(node.outputs[0]), bias)


def _crossed(node: ir.Node, dy: ir.Value, emit: Emitter) -> ir.Value:
    zero_point = present(node, 3)
    symmetric = zero_point is None or zero_point_is_zero(zero_point)
    if symmetric and node.attributes.get_string("gradient", "row") == SCORES:
        crossed = cross_entropy(node, dy, emit)
        if crossed is not None:
            return crossed
    scaled = emit.op("Mul", dy, node.inputs[2])
    scaled.shape = node.outputs[0].shape
    one = emit.scalar(1.0, like=scaled)
    if symmetric:
        return _integer_product(node, scaled, one, None, emit)
    offset = known(zero_point)
    if offset is not None and offset.size == 1:
        return _integer_product(node, scaled, one, emit.constant(offset.reshape(())), emit)
    # A zero point per output channel is one per row of the transposed matrix, which no kernel takes.
    offsets = emit.op("Mul", scaled, emit.op("Cast", zero_point, to=ir.DataType.FLOAT.value))
    excess = emit.op("ReduceSum", offsets, emit.ints(-1), keepdims=1)
    return emit.op("Sub", _integer_product(node, scaled, one, None, emit), excess)


def _integer_product(
    node: ir.Node, scaled: ir.Value, one: ir.Value, zero_point: ir.Value | None, emit: Emitter
) -> ir.Value:
    """The same matrix, transposed if it was not and the other way round, in both layouts where both are stored."""
    # Rows of very different size would share one scale, and the small ones would round to 0.
    gradient = node.attributes.get_string("gradient", "row")
    if gradient == SCORES:
        return any_scores(node, scaled, zero_point, emit)
    inputs = (scaled, operand(node, 1), one, zero_point, None, present(node, TRANSPOSED))
    trans_b = 1 - int(node.attributes.get_int("transB", 0))
    return int8_matmul(emit, *inputs, trans_b=trans_b, rounding=gradient, gradient=NO_GRADIENT)


@rule("MatMulNBits", domain=CONTRIB)
def matmul_nbits(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """dx = dy W, with W [N, K] dequantized here from the bytes that the forward matmul reads."""
    rows, width = node.attributes["N"].as_int(), node.attributes["K"].as_int()
    weight = emit.op("DequantizeLinear", *_blocks(node, emit), axis=1, block_size=_block_size(node))
    weight.shape = ir.Shape([rows, _padded(node)])
    dx = emit.op("MatMul", dy, weight)
    if _padded(node) != width:
        dx = emit.op("Slice", dx, emit.ints(0), emit.ints(width), emit.ints(-1))
    return dx, None, None, None, None, _bias_gradient(node, dy, present(node, 5), emit)


def _block_size(node: ir.Node) -> int:
    return node.attributes["block_size"].as_int()


def _padded(node: ir.Node) -> int:
    """The width of the quantized matrix: K rounded up to whole blocks."""
    return -(-node.attributes["K"].as_int() // _block_size(node)) * _block_size(node)


def _blocks(node: ir.Node, emit: Emitter) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Weight, scales and zero points as ``DequantizeLinear`` reads them. The weight's bytes stay the same."""
    quantized, scales, zero_points = known(node.inputs[1]), known(node.inputs[2]), known(present(node, 3))
    bits = node.attributes.get_int("bits", 4)
    whole = zero_points is None or zero_points.dtype == np.uint8
    if quantized is None or scales is None or bits not in (4, 8) or present(node, 4) is not None or not whole:
        raise NoGradientForCase(
            node,
            "only constant weights of 4 or 8 bits with integer zero points, whose columns were not reordered (g_idx), "
            "can be dequantized",
            "quantize the model again with 4 or 8 bits, integer zero points and no reordering",
        )
    rows, blocks = node.attributes["N"].as_int(), _padded(node) // _block_size(node)
    stem = str(operand(node, 1).name)
    weight = _integers(emit, f"{stem}.rows", quantized, [rows, _padded(node)], bits)
    grid = emit.op("Reshape", node.inputs[2], emit.ints(rows, blocks))
    return weight, grid, _zero_points(emit, stem, zero_points, [rows, blocks], bits)


def _zero_points(emit: Emitter, stem: str, given: NDArray[np.generic] | None, shape: list[int], bits: int) -> ir.Value:
    rows, blocks = shape
    if given is None:  # the middle: 8 of 4 bits in both halves of a byte, 128 of 8 bits
        given = np.full((rows, -(-blocks * bits // 8)), 0x88 if bits == 4 else 0x80, np.uint8)
    if bits == 4:  # rows of an odd number of blocks end in half a byte, which the dense layout does not have
        halves = unpack_nibbles(given.astype(np.uint8).reshape(rows, -1))[:, :blocks].reshape(-1)
        given = pack_nibbles(np.pad(halves, (0, halves.size % 2)))
    return _integers(emit, f"{stem}.zeros", given, shape, bits)


def _integers(emit: Emitter, name: str, array: NDArray[np.generic], shape: list[int], bits: int) -> ir.Value:
    """An initializer over the bytes of ``array``, as a matrix of unsigned integers of 4 or 8 bits."""
    if bits == 8:
        return emit.stored(name, array.reshape(shape))
    return emit.stored(name, ir.PackedTensor(array.reshape(-1), ir.DataType.UINT4, shape=ir.Shape(shape), name=name))


@rule(FAKE_QUANTIZE, domain=DOMAIN)
def fake_quantize(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """The straight-through estimator (Bengio et al., 2013): dy where x is in range, 0 where it was clipped."""
    x, (scale, zero_point) = operand(node), (known(value) for value in node.inputs[1:3])
    if scale is None or zero_point is None:
        raise NoGradientForCase(node, "its scale is only known at run time", "quantize with constant scales")
    limits = np.iinfo(str(zero_point.dtype))
    shape = [1] * len(dims_of(x))
    if scale.size > 1:
        shape[int(node.attributes.get_int("axis", 1))] = scale.size
    step, middle = scale.astype(np.float32).reshape(shape), zero_point.astype(np.float32).reshape(shape)
    low, high = (emit.constant((edge - middle) * step) for edge in (np.float32(limits.min), np.float32(limits.max)))
    inside = emit.op("And", emit.op("GreaterOrEqual", x, low), emit.op("LessOrEqual", x, high))
    return masked(dy, inside, emit), None, None
