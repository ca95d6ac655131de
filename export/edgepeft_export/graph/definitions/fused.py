"""Operators into which ONNX Runtime joins several, as its optimizers save them in a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.definitions.algebra import Term
from edgepeft_export.graph.definitions.registry import Definition, NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import rank
from edgepeft_export.opset.domains import CONTRIB

Given = Sequence[ir.Value | None]


def _fused(op_type: str) -> Callable[[Definition], Definition]:
    return definition(f"{CONTRIB}.{op_type}")


def _padded(given: Given, count: int) -> list[ir.Value | None]:
    return [*given, *[None] * (count - len(given))]


def _plus(emit: Emitter, x: ir.Value | None, *others: ir.Value | None) -> ir.Value:
    """The sum of those that there are."""
    assert x is not None
    for other in others:
        x = x if other is None else emit.op("Add", x, other)
    return x


@_fused("QuickGelu")
def quick_gelu(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """``x sigmoid(alpha x)``, which SiLU is for alpha = 1."""
    x = _plus(emit, given[0])
    alpha = node.attributes.get_float("alpha", 1.702)
    inner = x if alpha == 1.0 else emit.op("Mul", x, emit.scalar(alpha, like=x))
    return (emit.op("Mul", x, emit.op("Sigmoid", inner)),)


@_fused("Gelu")
@_fused("BiasGelu")
def gelu(_: ir.Node, given: Given, emit: Emitter) -> Given:
    x = _plus(emit, *given)
    half = Term(emit.op("Erf", (Term(x, emit) * math.sqrt(0.5)).value), emit) + 1.0
    return ((Term(x, emit) * 0.5 * half).value,)


@_fused("FastGelu")
def fast_gelu(_: ir.Node, given: Given, emit: Emitter) -> Given:
    """By a hyperbolic tangent (Hendrycks and Gimpel, 2016)."""
    x = Term(_plus(emit, *given), emit)
    inner = (x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)
    return ((x * 0.5 * (Term(emit.op("Tanh", inner.value), emit) + 1.0)).value,)


@_fused("SkipLayerNormalization")
def skip_layer_norm(node: ir.Node, given: Given, emit: Emitter) -> Given:
    x, skip, scale, shift, bias = _padded(given, 5)
    total = _plus(emit, x, skip, bias)
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    return (emit.op("LayerNormalization", total, scale, shift, axis=-1, epsilon=epsilon), None, None, total)


@_fused("SkipSimplifiedLayerNormalization")
def skip_rms_norm(node: ir.Node, given: Given, emit: Emitter) -> Given:
    x, skip, scale, bias = _padded(given, 4)
    total = _plus(emit, x, skip, bias)
    return (_rms_norm(node, total, scale, emit), None, None, total)


@definition("SimplifiedLayerNormalization")
def rms_norm(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """ONNX Runtime's own operator, though it is in ONNX's domain."""
    x, scale = given
    return (_rms_norm(node, _plus(emit, x), scale, emit),)


def _rms_norm(node: ir.Node, x: ir.Value, scale: ir.Value | None, emit: Emitter) -> ir.Value:
    if node.attributes.get_int("axis", -1) != -1:
        raise NotDefined("it normalizes over several axes", "normalize the last axis alone")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    mean = Term(emit.op("ReduceMean", emit.op("Mul", x, x), emit.ints(-1)), emit) + epsilon
    return _times(emit, emit.op("Div", x, emit.op("Sqrt", mean.value)), scale)


def _times(emit: Emitter, x: ir.Value, scale: ir.Value | None) -> ir.Value:
    return x if scale is None else emit.op("Mul", x, scale)


@_fused("FusedMatMul")
def matmul(node: ir.Node, given: Given, emit: Emitter) -> Given:
    a, b = (_plus(emit, value) for value in given)
    if any(node.attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB")):
        raise NotDefined("it transposes axes of the batch", "optimize at the basic level")
    sides = (("transA", a), ("transB", b))
    a, b = (_transposed(emit, value) if node.attributes.get_int(name, 0) else value for name, value in sides)
    alpha = node.attributes.get_float("alpha", 1.0)
    product = emit.op("MatMul", a, b)
    return (product if alpha == 1.0 else emit.op("Mul", product, emit.scalar(alpha, like=a)),)


def _transposed(emit: Emitter, value: ir.Value) -> ir.Value:
    if value.shape is None:
        raise NotDefined("the number of axes of a factor is not known", "optimize at the basic level")
    axes = list(range(rank(value)))
    return emit.op("Transpose", value, perm=[*axes[:-2], axes[-1], axes[-2]])


@_fused("FusedConv")
def convolution(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """A convolution, with a sum and an activation afterwards."""
    x, kernel, bias, added = _padded(given, 4)
    own = ("activation", "activation_params")
    window = {name: attribute.value for name, attribute in node.attributes.items() if name not in own}
    y = _plus(emit, emit.op("Conv", x, kernel, bias, **window), added)
    numbers = node.attributes.get_floats("activation_params", ())
    return (_activated(emit, node.attributes.get_string("activation", ""), y, numbers),)


@_fused("FusedGemm")
def gemm(node: ir.Node, given: Given, emit: Emitter) -> Given:
    own = ("transA", "transB", "alpha", "beta")
    settings = {name: attribute.value for name, attribute in node.attributes.items() if name in own}
    named = ("activation_alpha", "activation_beta", "activation_gamma")
    numbers = [node.attributes.get_float(name, 0.0) for name in named if name in node.attributes]
    kind = node.attributes.get_string("activation", "")
    return (_activated(emit, kind, emit.op("Gemm", *given, **settings), numbers),)


def _activated(emit: Emitter, kind: str, y: ir.Value, numbers: Sequence[float]) -> ir.Value:
    if kind == "Clip":
        low, high = (emit.scalar(number, like=y) for number in numbers)
        return emit.op("Clip", y, low, high)
    names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}.get(kind, ())
    if not kind:
        return y
    node = ir.node(kind, [y], dict(zip(names, numbers, strict=False)))
    node.outputs[0].type = y.type
    emit.graph.append(node)
    return node.outputs[0]


@_fused("Attention")
def attention(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """Self-attention with one matrix for queries, keys and values."""
    x, weight, bias, mask, *rest = _padded(given, 7)
    rotated = node.attributes.get_int("do_rotary", 0)
    if rotated or any(value is not None for value in (*rest[:1], *rest[2:])):
        raise NotDefined("it has a cache or rotary positions", "optimize at the basic level")
    if node.attributes.get_ints("qkv_hidden_sizes", ()):
        raise NotDefined("its queries, keys and values differ in width", "optimize at the basic level")
    joined = _plus(emit, emit.op("MatMul", x, weight), bias)
    parts = emit.ops("Split", joined, outputs=3, axis=-1, num_outputs=3)
    return (_attended(node, list(parts), mask, rest[1], emit), None)


@_fused("MultiHeadAttention")
def multi_head(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """Attention of queries, keys and values [batch, length, width] that are computed before."""
    query, key, value, bias, mask, added, *cache = _padded(given, 8)
    if key is None or value is None or any(item is not None for item in cache) or bias is not None:
        raise NotDefined("it has a cache, a bias or joined keys", "optimize at the basic level")
    return (_attended(node, [_plus(emit, query), key, value], mask, added, emit), None, None)


def _attended(
    node: ir.Node, parts: Sequence[ir.Value], mask: ir.Value | None, added: ir.Value | None, emit: Emitter
) -> ir.Value:
    """Softmax of scaled products, times the values, [batch, length, width]."""
    heads = node.attributes.get_int("num_heads", 1)
    split = [emit.op("Reshape", part, emit.ints(0, 0, heads, -1)) for part in parts]
    query, value = (emit.op("Transpose", split[index], perm=[0, 2, 1, 3]) for index in (0, 2))
    scores = emit.op("MatMul", query, emit.op("Transpose", split[1], perm=[0, 2, 3, 1]))
    scale = node.attributes.get_float("scale", 0.0)
    if scale:
        scores = emit.op("Mul", scores, emit.scalar(scale, like=query))
    else:
        width = emit.op("Cast", emit.op("Shape", split[0], start=3, end=4), to=ir.DataType.FLOAT.value)
        scores = emit.op("Div", scores, emit.op("Sqrt", width))
    scores = _plus(emit, scores, added)
    lowest = emit.scalar(node.attributes.get_float("mask_filter_value", -10000.0), like=query)
    if mask is not None:
        scores = emit.op("Add", scores, emit.op("Mul", _hidden(mask, parts[1], emit), lowest))
    if node.attributes.get_int("unidirectional", 0):
        ones = emit.op("Expand", emit.scalar(1.0, like=query), emit.op("Shape", scores, start=2))
        above = emit.op("Trilu", ones, emit.constant(np.asarray(1, np.int64)), upper=1)
        scores = emit.op("Add", scores, emit.op("Mul", above, lowest))
    mixed = emit.op("MatMul", emit.op("Softmax", scores, axis=-1), value)
    return emit.op("Reshape", emit.op("Transpose", mixed, perm=[0, 2, 1, 3]), emit.ints(0, 0, -1))


def _hidden(mask: ir.Value, keys: ir.Value, emit: Emitter) -> ir.Value:
    """1 where a key is hidden, else 0, [batch, 1, 1 or queries, keys].

    A mask has one number per key, or per query and key; with one axis, it has the number of keys per example.
    """
    if mask.shape is None or rank(mask) > 3:
        raise NotDefined("the number of axes of its mask is not known, or 4", "optimize at the basic level")
    if rank(mask) == 1:
        length = emit.op("Squeeze", emit.op("Shape", keys, start=1, end=2), emit.ints(0))
        zero, one = (emit.constant(np.asarray(number, np.int64)) for number in (0, 1))
        counted = emit.op("Unsqueeze", emit.op("Cast", mask, to=ir.DataType.INT64.value), emit.ints(1))
        shown = emit.op("Less", emit.op("Range", zero, length, one), counted)
    else:
        shown = emit.op("Cast", mask, to=ir.DataType.BOOL.value)
    hidden = emit.op("Cast", emit.op("Not", shown), to=ir.DataType.FLOAT.value)
    return emit.op("Unsqueeze", hidden, emit.ints(1) if rank(mask) == 3 else emit.ints(1, 2))


@_fused("EmbedLayerNormalization")
def embedding(node: ir.Node, given: Given, emit: Emitter) -> Given:
    """BERT's embeddings: of tokens, positions and segments, normalized. The second output counts the mask's ones."""
    ids, segments, words, positions, kinds, scale, shift, mask, at = _padded(given, 9)
    length = emit.op("Squeeze", emit.op("Shape", ids, start=1, end=2), emit.ints(0))
    zero, one = (emit.constant(np.asarray(number, np.int64)) for number in (0, 1))
    if at is None:
        at = emit.op("Range", zero, length, one)
    total = _plus(emit, emit.op("Gather", words, ids), emit.op("Gather", positions, at))
    if segments is not None and kinds is not None:
        total = emit.op("Add", total, emit.op("Gather", kinds, segments))
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    count = None
    if len(node.outputs) > 1 and node.outputs[1].uses():
        if mask is None:
            raise NotDefined("it counts a mask that it does not have", "optimize at the basic level")
        count = emit.op("ReduceSum", mask, emit.ints(1), keepdims=0)
    return (emit.op("LayerNormalization", total, scale, shift, axis=-1, epsilon=epsilon), count, total)
