"""Slice and Pad, each the other's gradient."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.reading import reshaped_like
from edgepeft_export.graph.constants import known_ints
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import Dim, dims_of, rank

Amount = int | ir.Value
"""The number of elements to pad by: an integer, or an int64 vector of length 1."""

_TO_THE_END = 2**31 - 1
"""Exporters write this bound, or a larger one, for "to the end"."""


def padded(value: ir.Value, of_rank: int, amounts: Mapping[int, tuple[Amount, Amount]], emit: Emitter) -> ir.Value:
    """Pad with zeros, per axis before and after; negative amounts cut.

    All axes are written down: onnxruntime (1.31) mixes up the ``axes`` of a Pad when it moves a Transpose across it.
    """
    if all(pair == (0, 0) for pair in amounts.values()):
        return value
    sides = [amounts.get(axis, (0, 0))[side] for side in (0, 1) for axis in range(of_rank)]
    numbers = [amount for amount in sides if isinstance(amount, int)]
    if len(numbers) == len(sides):
        pads = emit.ints(*numbers)
    else:
        vectors = [emit.ints(amount) if isinstance(amount, int) else amount for amount in sides]
        pads = emit.op("Concat", *vectors, axis=0)
    return emit.op("Pad", value, pads)


@rule("Slice")
def slice_(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    x = operand(node)
    cut: dict[int, tuple[Amount, Amount]] = {}
    for entry, (axis, step) in enumerate(_axes_and_steps(node, rank(x))):
        if step == 1:
            cut[axis] = _cut_off(node, entry, axis, emit)
        else:
            dy = _spread(dy, node, entry, axis, step, emit)
    return (padded(dy, rank(x), cut, emit),)


def _axes_and_steps(node: ir.Node, of_rank: int) -> list[tuple[int, int]]:
    axes, steps, count = present(node, 3), present(node, 4), dims_of(operand(node, 1))[0]
    if axes is None and not isinstance(count, int):
        raise NoGradientForCase(node, "it is not known which axes it cuts", "give its axes as a constant")
    axes_known = list(range(count if isinstance(count, int) else 0)) if axes is None else known_ints(axes)
    steps_known = [1] * len(axes_known or ()) if steps is None else known_ints(steps)
    if axes_known is None or steps_known is None:
        raise NoGradientForCase(node, "its axes or steps are computed at run time", "make them constants")
    return [(axis % of_rank, step) for axis, step in zip(axes_known, steps_known, strict=True)]


def _cut_off(node: ir.Node, entry: int, axis: int, emit: Emitter) -> tuple[Amount, Amount]:
    """The numbers of elements that a slice with step 1 leaves out before and after."""
    x = operand(node)
    starts, ends = known_ints(node.inputs[1]), known_ints(node.inputs[2])
    size = dims_of(x)[axis]
    if starts is not None and ends is not None:
        if isinstance(size, int):
            first_taken, end, _ = slice(starts[entry], ends[entry]).indices(size)
            return first_taken, size - max(first_taken, end)
        return _cut_of_unknown_size(x, axis, starts[entry], ends[entry], emit)
    whole = emit.dim(x, axis)
    start = starts[entry] if starts is not None else None
    before: Amount
    if start is not None and start >= 0:
        before = _at_most(start, whole, emit)
    else:
        before = _from_front(_entry(node.inputs[1], entry, emit), whole, emit)
    taken = emit.op("Add", _vector(before, emit), emit.dim(node.outputs[0], axis))
    return before, emit.op("Sub", whole, taken)


def _cut_of_unknown_size(x: ir.Value, axis: int, start: int, end: int, emit: Emitter) -> tuple[Amount, Amount]:
    """Clamp both ends to the axis. It may be shorter than the slice starts, and the slice then is empty."""
    size = emit.dim(x, axis)
    before = _at_most(start, size, emit) if start >= 0 else _rest(size, min(-start, _TO_THE_END), emit)
    if end >= _TO_THE_END:
        return before, 0
    if end < 0:
        stop: Amount = _rest(size, min(-end, _TO_THE_END), emit)
    else:
        stop = _at_most(end, size, emit)
    if before != 0:
        stop = emit.op("Max", _vector(stop, emit), _vector(before, emit))
    return before, emit.op("Sub", size, _vector(stop, emit))


def _at_most(position: int, size: ir.Value, emit: Emitter) -> Amount:
    return 0 if position == 0 else emit.op("Min", emit.ints(position), size)


def _rest(size: ir.Value, count: int, emit: Emitter) -> ir.Value:
    """The number of ``size`` elements that are left without the last ``count``."""
    return emit.op("Max", emit.op("Sub", size, emit.ints(count)), emit.ints(0))


def _entry(vector: ir.Value | None, entry: int, emit: Emitter) -> ir.Value:
    """One entry of an index vector, as an int64 vector of length 1."""
    taken = emit.op("Slice", vector, emit.ints(entry), emit.ints(entry + 1), emit.ints(0))
    return emit.op("Cast", taken, to=int(ir.DataType.INT64))


def _from_front(position: ir.Value, size: ir.Value, emit: Emitter) -> ir.Value:
    """A start computed at run time, counted from the front and clamped to the axis."""
    wrapped = emit.op("Where", emit.op("Less", position, emit.ints(0)), emit.op("Add", position, size), position)
    return emit.op("Min", emit.op("Max", wrapped, emit.ints(0)), size)


def _vector(amount: Amount, emit: Emitter) -> ir.Value:
    return emit.ints(amount) if isinstance(amount, int) else amount


def _spread(dy: ir.Value, node: ir.Node, entry: int, axis: int, step: int, emit: Emitter) -> ir.Value:
    """Undo a slice with steps: each position of the axis reads its slice of ``dy``, or the zeros appended to it."""
    size = dims_of(operand(node))[axis]
    starts, ends = known_ints(node.inputs[1]), known_ints(node.inputs[2])
    if step < 0 and ends is not None and ends[entry] >= _TO_THE_END:
        raise NoGradientForCase(
            node, "ONNX and ONNX Runtime differ on a last end with a negative step", "end it before the first element"
        )
    if isinstance(size, int) and starts is not None and ends is not None:
        taken = np.asarray(_taken(size, starts[entry], ends[entry], step), dtype=np.int64)
        sources = np.full(size, len(taken), dtype=np.int64)
        sources[taken] = np.arange(len(taken))
        indices = emit.constant(sources)
    else:
        indices = _sources(node, entry, axis, step, emit)
    return emit.op("Gather", padded(dy, rank(operand(node)), {axis: (0, 1)}, emit), indices, axis=axis)


def _taken(size: int, start: int, end: int, step: int) -> range:
    """The positions that a slice reads, clamped to the axis as ONNX does (numpy drops a start before the first)."""
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _sources(node: ir.Node, entry: int, axis: int, step: int, emit: Emitter) -> ir.Value:
    """For each position of the sliced axis, its index in the slice; one past the end where it has none."""
    size = emit.dim(operand(node), axis)
    bounds = [_entry(bound, entry, emit) for bound in node.inputs[1:3]]
    taken = emit.op("Slice", counted(size, emit), *bounds, emit.ints(0), emit.ints(step))
    count = emit.op("Shape", taken)
    return emit.op("ScatterElements", emit.op("Expand", count, size), taken, counted(count, emit), axis=0)


def counted(size: ir.Value, emit: Emitter) -> ir.Value:
    """0, 1, ... below ``size``, an int64 vector of length 1."""
    zero, one = (emit.constant(np.asarray(number, dtype=np.int64)) for number in (0, 1))
    return emit.op("Range", zero, emit.op("Squeeze", size), one)


def add_at(zeros: ir.Value, positions: ir.Value, dy: ir.Value, axis: int, trailing: int, emit: Emitter) -> ir.Value:
    """Add the slices of ``dy`` along ``axis``, with ``trailing`` axes after it, into ``zeros`` at ``positions``."""
    lined_up = trailing == 0 and positions.shape is not None and rank(positions) == 1
    column = positions if lined_up else emit.op("Reshape", positions, emit.ints(-1, *[1] * trailing))
    everywhere = emit.op("Expand", column, emit.op("Shape", dy))
    return emit.op("ScatterElements", zeros, everywhere, dy, axis=axis, reduction="add")


@rule("Pad")
def pad(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    pads = present(node, 1)
    if node.attributes.get_string("mode", "constant") != "constant":
        return (_folded(dy, node, emit),)
    amounts = _amounts(node, rank(operand(node)))
    if amounts is None:
        dx = emit.op("Pad", dy, emit.op("Neg", pads), None, present(node, 3))
    else:
        back = {axis: (-before, -after) for axis, (before, after) in amounts.items()}
        dx = padded(dy, rank(operand(node)), back, emit)
    if present(node, 2) is None:
        return (dx,)
    sums = [emit.op("ReduceSum", value, keepdims=0) for value in (dy, dx)]
    return dx, None, reshaped_like(emit.op("Sub", *sums), [], operand(node, 2), emit)


def _folded(dy: ir.Value, node: ir.Node, emit: Emitter) -> ir.Value:
    """Add the elements that reflect, edge and wrap copied to those they were copied from, axis by axis."""
    x, y = operand(node), node.outputs[0]
    sizes: list[Dim] = dims_of(y)
    vectors = {axis: emit.dim(y, axis) for axis in range(len(sizes))}
    for axis, before, after in _padding(node, rank(x)):
        vectors[axis] = emit.dim(x, axis)
        zeros = emit.zeros(emit.op("Concat", *vectors.values(), axis=0), like=x)
        mode = str(node.attributes["mode"].as_string())
        origin = emit.op("Pad", counted(vectors[axis], emit), emit.ints(before, after), mode=mode)
        dy = add_at(zeros, origin, dy, axis, len(sizes) - axis - 1, emit)
    return dy


def _amounts(node: ir.Node, of_rank: int) -> dict[int, tuple[int, int]] | None:
    """The numbers of elements that a Pad adds before and after each axis, where they are known."""
    pads = known_ints(present(node, 1))
    axes = list(range(of_rank)) if present(node, 3) is None else known_ints(present(node, 3))
    if pads is None or axes is None:
        return None
    return {axis % of_rank: (before, after) for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False)}


def _padding(node: ir.Node, of_rank: int) -> list[tuple[int, int, int]]:
    """(axis, before, after) of every axis that is padded."""
    amounts = _amounts(node, of_rank)
    if amounts is None or min(min(pair) for pair in amounts.values()) < 0:
        raise NoGradientForCase(
            node,
            "a mode that copies elements needs pads that are known and not negative",
            "make its pads constants, or pad with a constant value",
        )
    return [(axis, *pair) for axis, pair in amounts.items() if pair != (0, 0)]
