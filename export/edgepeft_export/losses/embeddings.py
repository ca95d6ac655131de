"""The common parts of losses over embeddings: how a model returns several of an example, similarities, distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from edgepeft_export.errors import WrongEmbeddings
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of
from edgepeft_export.losses.emitting import Values, first, text

_SMALLEST_NORM = 1e-8
"""Shorter vectors are treated as if they had this norm, as torch's ``cosine_similarity`` does."""

_ADDED = 1e-6
"""Added to differences, as torch's ``pairwise_distance`` does, so that the distance 0 has a gradient."""


class Embeddings(NamedTuple):
    """Embeddings of the texts, images, ... of an example.

    Attributes:
        anchor: [batch, width].
        others: each [batch, width] or, where their number is only known on the device, one [others * batch, width]:
            the first of every example, then the second of every example.
    """

    anchor: ir.Value
    others: Sequence[ir.Value]


def check_embeddings(outputs: Values, least: int, loss: str) -> Dim:
    """Return the size of the batch; raise where the outputs are not at least that many embeddings.

    Raises:
        WrongEmbeddings: they are neither one ``[batch, embeddings, width]`` nor several ``[batch, width]``.
    """
    shapes = {name: dims_of(value) for name, value in outputs.items()}
    opening = dims_of(first(outputs))
    if len(opening) == 3:
        fits = not isinstance(opening[1], int) or opening[1] >= least
    else:
        fits = len(shapes) >= least and all(len(dims) == 2 for dims in shapes.values())
    if fits:
        return opening[0]
    raise WrongEmbeddings(
        f"The loss {loss} compares {least} embeddings of an example or more, which the model does not return.",
        context="the model returns: " + ", ".join(f"{name} {text(dims)}" for name, dims in shapes.items()),
        hint=f"return one output [batch, embeddings, width], or {least} outputs [batch, width].",
    )


def embeddings(emit: Emitter, outputs: Values, count: int | None = None) -> Embeddings:
    """The embeddings of ``check_embeddings``: ``count`` of each example, by default all."""
    values = list(outputs.values())
    if len(dims_of(values[0])) == 2:
        return Embeddings(values[0], values[1:count])
    if count is not None:
        anchor, *others = (emit.op("Gather", values[0], emit.index(at), axis=1) for at in range(count))
        return Embeddings(anchor, others)
    anchor = emit.op("Gather", values[0], emit.index(0), axis=1)
    last = emit.op("Shape", values[0], start=1, end=2)
    rest = emit.op("Transpose", emit.op("Slice", values[0], emit.ints(1), last, emit.ints(1)), perm=[1, 0, 2])
    width = emit.op("Shape", values[0], start=2, end=3)
    return Embeddings(anchor, [emit.op("Reshape", rest, emit.op("Concat", emit.ints(-1), width, axis=0))])


def normalized(emit: Emitter, x: ir.Value) -> ir.Value:
    """``x`` [rows, width] with norms of 1."""
    squares = emit.op("ReduceSum", emit.op("Mul", x, x), emit.ints(1), keepdims=1)
    return emit.op("Div", x, emit.op("Sqrt", emit.op("Max", squares, emit.scalar(_SMALLEST_NORM**2, like=x))))


def cosine(emit: Emitter, x: ir.Value, y: ir.Value) -> ir.Value:
    """``torch.nn.functional.cosine_similarity`` of rows, [rows]."""
    return emit.op("ReduceSum", emit.op("Mul", normalized(emit, x), normalized(emit, y)), emit.ints(1), keepdims=0)


def distance(emit: Emitter, x: ir.Value, y: ir.Value, kind: str) -> ir.Value:
    """The distance of rows, [rows]: ``euclidean``, as torch's ``pairwise_distance``, or ``cosine``."""
    if kind == "cosine":
        return emit.op("Sub", emit.scalar(1.0, like=x), cosine(emit, x, y))
    difference = emit.op("Add", emit.op("Sub", x, y), emit.scalar(_ADDED, like=x))
    return emit.op("Sqrt", emit.op("ReduceSum", emit.op("Mul", difference, difference), emit.ints(1), keepdims=0))
