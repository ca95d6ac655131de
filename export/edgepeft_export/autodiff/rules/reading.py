"""Helpers of rules: constant inputs, axes and static sizes of a node, and reshapes between them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import present
from edgepeft_export.graph.shapes import Dim, dims_of, dtype_of, rank


def axis_of(node: ir.Node, default: int, of_rank: int) -> int:
    """The attribute ``axis`` counted from the front."""
    return int(node.attributes.get_int("axis", default)) % max(of_rank, 1)


def known_axes(node: ir.Node, of_rank: int) -> list[int] | None:
    """The axes of a node, from its attribute (older opsets) or its second input.

    ``[]`` where it has none; ``None`` where they are computed at run time.
    """
    given = node.attributes.get_ints("axes", None)
    if given is None:
        source = present(node, 1)
        given = [] if source is None else known_ints(source)
    return None if given is None else sorted(axis % of_rank for axis in given)


def static_size(dims: Sequence[Dim]) -> int | None:
    """The product of sizes, where all are known."""
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return prod(sizes) if len(sizes) == len(dims) else None


def reshaped_like(value: ir.Value, have: Sequence[Dim] | None, target: ir.Value, emit: Emitter) -> ir.Value:
    """Reshape ``value``, whose dimensions are ``have``, to the shape of ``target``.

    Prefers a constant shape (0 copies a dimension, -1 is inferred) to reading that of ``target`` at run time. A
    constant cannot express a size of 0, nor can -1 be inferred next to one.
    """
    have = have or []
    template: list[int] = []
    for position, dim in enumerate(dims_of(target)):
        same = position < len(have) and have[position] == dim and dim is not None
        template.append(dim if isinstance(dim, int) else 0 if same else -1)
    if 0 in dims_of(target) or template.count(-1) > 1 or (-1 in template and 0 in template):
        return emit.op("Reshape", value, emit.shape_of(target), allowzero=1)
    return emit.op("Reshape", value, emit.ints(*template))


def reciprocal(count: ir.Value, like: ir.Value, emit: Emitter) -> ir.Value:
    """1 / ``count``, an integer, with the dtype of ``like``: computed in float32, since float16 would overflow."""
    return emit.cast(emit.op("Reciprocal", emit.cast(count, ir.DataType.FLOAT)), dtype_of(like))


def zeros_like(value: ir.Value, emit: Emitter) -> ir.Value:
    """Zeros to scatter into, of the shape of ``value``.

    ONNX Runtime would fold zeros of a known shape into a constant that stays in memory, as large as an embedding. So
    zeros of a parameter are computed from it.
    """
    producer = value.producer()
    if producer is None and all(isinstance(dim, int) for dim in dims_of(value)):
        return emit.op("Mul", value, emit.scalar(0.0, like=value))
    return emit.zeros(emit.shape_of(value), like=value)


def narrow(gradient: ir.Value | None) -> ir.Value | None:
    """The value that a gradient was expanded from, if it was: against an operand of full shape it broadcasts."""
    producer = gradient.producer() if gradient is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "Expand" else gradient


def channel_shape(value: ir.Value) -> list[int]:
    """The shape that lines a vector over axis 1 of ``value`` up with it: ``[-1, 1, 1, ...]``."""
    return [-1, *[1] * (rank(value) - 2)]


def attribute_ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    given = node.attributes.get_ints(name, None)
    return list(default) if given is None else [int(entry) for entry in given]
