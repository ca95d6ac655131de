"""What rules read from a node and how they lay out shapes: constant inputs, axes, sizes known before the run."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import present
from edgepeft_export.graph.shapes import Dim, dims_of, rank


def first(node: ir.Node) -> ir.Value:
    """The first input, which every operator here has."""
    value = node.inputs[0]
    assert value is not None
    return value


def axis_of(node: ir.Node, default: int, of_rank: int) -> int:
    """The attribute ``axis`` counted from the front."""
    return int(node.attributes.get_int("axis", default)) % max(of_rank, 1)


def known_axes(node: ir.Node, of_rank: int) -> list[int] | None:
    """The axes of a node that takes them as an attribute (older opsets) or as its second input.

    ``[]`` where none are given; ``None`` where only the run knows them.
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

    Prefers a constant shape (0 copies a dimension, -1 is the one left over) to asking ``target`` at run time. A size of
    0 can neither be written so nor leave anything over.
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
    """1 / ``count``, an integer, with the dtype of ``like``: computed in float32, which float16 would not hold."""
    assert like.dtype is not None
    whole = emit.op("Reciprocal", emit.op("Cast", count, to=int(ir.DataType.FLOAT)))
    return whole if like.dtype == ir.DataType.FLOAT else emit.op("Cast", whole, to=int(like.dtype))


def zeros_like(value: ir.Value, emit: Emitter) -> ir.Value:
    """Zeros to scatter into, of the shape of ``value``.

    Of a shape that is known, ONNX Runtime would fold the zeros into a constant that stays in memory for good: as much
    as an embedding. So zeros of a parameter are computed from it.
    """
    producer = value.producer()
    if producer is None and all(isinstance(dim, int) for dim in dims_of(value)):
        return emit.op("Mul", value, emit.scalar(0.0, like=value))
    return emit.zeros(emit.shape_of(value), like=value)


def narrow(gradient: ir.Value | None) -> ir.Value | None:
    """What a gradient was expanded from, where it was: beside an operand of full shape it broadcasts by itself."""
    producer = gradient.producer() if gradient is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "Expand" else gradient


def channel_shape(value: ir.Value) -> list[int]:
    """The shape that lines a vector over axis 1 of ``value`` up with it: ``[-1, 1, 1, ...]``."""
    return [-1, *[1] * (rank(value) - 2)]


def attribute_ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    given = node.attributes.get_ints(name, None)
    return list(default) if given is None else [int(number) for number in given]
