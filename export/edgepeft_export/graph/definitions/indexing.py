"""Operators that read or write at indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.definitions.registry import NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import dims_of, rank


@definition("Compress")
def compress(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """The entries along an axis, or of the flat tensor, where the condition is true."""
    x, condition = given
    assert x is not None and condition is not None
    axis = node.attributes.get_int("axis", None)
    chosen = emit.op("Squeeze", emit.op("NonZero", condition), emit.ints(0))
    source = emit.op("Reshape", x, emit.ints(-1)) if axis is None else x
    return (emit.op("Gather", source, chosen, axis=axis or 0),)


@definition("CumProd")
def cumulative_product(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """y_i = Π_{j <= i} x_j, by doubling: after step k an entry has the product of the 2^k entries up to it.

    It needs no division, so zeros have their gradient too (Hillis and Steele, CACM 1986).
    """
    x = given[0]
    axes = known_ints(operand(node, 1))
    assert x is not None
    if axes is None:
        raise NotDefined("its axis is computed at run time", "make it a constant")
    axis = axes[0] % rank(x)
    size = dims_of(x)[axis]
    if not isinstance(size, int):
        raise NotDefined("the size of its axis is not known", "declare the shapes of the inputs")
    reverse = bool(node.attributes.get_int("reverse", 0))
    y = _moved(x, 1, axis, rank(x), reverse, emit) if node.attributes.get_int("exclusive", 0) else x
    step = 1
    while step < size:
        y = emit.op("Mul", y, _moved(y, step, axis, rank(x), reverse, emit))
        step *= 2
    return (y,)


def _moved(x: ir.Value, by: int, axis: int, of_rank: int, reverse: bool, emit: Emitter) -> ir.Value:
    """The tensor moved along an axis, with ones where it leaves a gap."""
    pads = np.zeros((2, of_rank), np.int64)
    pads[:, axis] = (-by, by) if reverse else (by, -by)
    return emit.op("Pad", x, emit.ints(*pads.reshape(-1).tolist()), emit.scalar(1.0, like=x))


@definition("TensorScatter")
def tensor_scatter(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """A cache in which the entries from each row's index on are replaced by the update, at the end from the front."""
    cache, update, starts = [*given, None][:3]
    assert cache is not None and update is not None
    axis = node.attributes.get_int("axis", -2) % rank(cache)
    zero, one = (emit.constant(np.asarray(number, np.int64)) for number in (0, 1))
    rows = emit.op("Range", zero, emit.op("Squeeze", emit.dim(update, axis), emit.ints(0)), one)
    if starts is not None:
        rows = emit.op("Add", rows, emit.op("Unsqueeze", starts, emit.ints(1)))
        if node.attributes.get_string("mode", "linear") == "circular":
            rows = emit.op("Mod", rows, emit.dim(cache, axis))
    first = 0 if starts is None else 1  # the rows' axis of the batch, where there is one
    rows = emit.op("Unsqueeze", rows, emit.ints(*range(first, axis), *range(axis + 1, rank(cache))))
    indices = emit.op("Expand", rows, emit.shape_of(update))
    return (emit.op("ScatterElements", cache, indices, update, axis=axis),)


@definition("MaxUnpool")
def max_unpool(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """Zeros, with each value at its index in the flat output."""
    x, indices, shape = [*given, None][:3]
    assert x is not None and indices is not None
    made = node.outputs[0]
    if present(node, 2) is None and any(not isinstance(dim, int) for dim in dims_of(made)):
        raise NotDefined("the size of its output is not known", "declare the shapes of the inputs")
    shape = emit.ints(*(dim for dim in dims_of(made) if isinstance(dim, int))) if shape is None else shape
    flat = emit.ints(-1)
    zeros = emit.op("Reshape", emit.zeros(shape, like=x), flat)
    values = (emit.op("Reshape", value, flat) for value in (indices, x))
    return (emit.op("Reshape", emit.op("ScatterElements", zeros, *values, axis=0), shape),)
