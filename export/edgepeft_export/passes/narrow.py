"""Ensures that no position is computed whose result is not read.

Pattern: ``Gather(f(x), 0 or -1)`` of one position along an axis, where f is made of operators that treat positions
alike. A classifier that reads one position (BERT's first token, a vision transformer's class token) needs the last
block at that position only: the feed-forward part, the attention's output and its queries, forward and backward.
Algebra: ``Gather(f(x), i) = f(Slice(x, i))``. The selection moves up to the last values that are needed at all
positions (the attention's keys and values).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import known
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import Dim, dims_of, is_float

# fmt: off
ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Where", "And", "Or", "Not", "IsNaN",
    "Equal", "Greater", "Less", "Max", "Min", "Neg", "Abs", "Sqrt", "Reciprocal", "Erf",
    "Exp", "Log", "Tanh", "Sigmoid", "Relu", "Gelu", "LeakyRelu", "Elu", "Softplus", "HardSwish",
    "Identity", "Cast",
})
# fmt: on
LAST = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class _Selection:
    """One position ``index`` along ``axis``."""

    axis: int
    index: int


def narrow(model: ir.Model) -> bool:
    """Move selections of one position up the graph, in place. Returns whether there was one to move."""
    moved = False
    for node in list(model.graph):
        selection = _selected(node)
        source = node.inputs[0] if selection is not None else None
        if selection is not None and source is not None:
            wanted = _wanted(model.graph, node, source, selection)
            if wanted:
                _rebuild(model.graph, node, source, wanted)
                moved = True
    return moved


def _selected(node: ir.Node) -> _Selection | None:
    """The first or last position, where a ``Gather`` picks that.

    These two exist in every operand, also in one that is broadcast over positions. Another index may not.
    """
    if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[1] is None or node.inputs[0].shape is None:
        return None
    index = known(node.inputs[1])
    dims = dims_of(node.inputs[0])
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    if index is None or index.ndim != 0 or index not in (0, -1) or len(dims) < 3 or not is_float(node.inputs[0]):
        return None
    return _Selection(axis % len(dims), int(index))


def _wanted(graph: ir.Graph, end: ir.Node, source: ir.Value, selection: _Selection) -> dict[ir.Value, _Selection]:
    """The values of which only one position is read, each with that position. The selected value comes first."""
    wanted: dict[ir.Value, _Selection] = {}
    requested: dict[ir.Value, dict[ir.Node, _Selection | None]] = {source: {end: selection}}
    for node in reversed(list(graph)):
        value = node.outputs[0] if len(node.outputs) == 1 else None
        if value is None or value not in requested or value.is_graph_output():
            continue
        uses = requested[value]
        if len({use.node for use in value.uses()} - set(uses)) or len(set(uses.values())) != 1:
            continue
        position = next(iter(uses.values()))
        axes = _input_axes(node, position.axis) if position is not None else None
        if position is None or axes is None:
            continue
        wanted[value] = position
        for given, axis in zip(node.inputs, axes, strict=True):
            if given is not None:
                use = None if axis is None else _Selection(axis, position.index)
                previous = requested.setdefault(given, {})
                previous[node] = use if previous.get(node, use) == use else None
    return wanted


def _input_axes(node: ir.Node, axis: int) -> list[int | None] | None:
    """The axis of each input that corresponds to the output's ``axis``.

    ``None`` for an input that is read whole. ``None`` instead of a list where the operator mixes positions.
    """
    output = node.outputs[0]
    if output.shape is None or any(value is not None and value.shape is None for value in node.inputs):
        return None
    size = len(output.shape)
    if node.op_type in ELEMENTWISE:
        return [_aligned(value, axis, size) for value in node.inputs]
    if node.op_type in ("Softmax", "LogSoftmax", "LayerNormalization"):
        over = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        first_only: list[int | None] = [axis, *[None] * (len(node.inputs) - 1)]
        return first_only if over % size == size - 1 != axis else None
    if node.op_type == "MatMul":
        return _matmul_axes(node, axis, size)
    if node.op_type == "Transpose":
        return [node.attributes["perm"].as_ints()[axis]] if "perm" in node.attributes else None
    if node.op_type == "Reshape":
        return [axis, None] if _keeps_axis(node, axis) else None
    return None


def _matmul_axes(node: ir.Node, axis: int, size: int) -> list[int | None] | None:
    left, right = (len(dims_of(value)) if value is not None else 0 for value in node.inputs)
    if left < 2 or right < 2 or axis == size - 1:
        return None
    if axis == size - 2:
        return [left - 2, None]
    return [_aligned(value, axis, size) for value in node.inputs]


def _aligned(value: ir.Value | None, axis: int, size: int) -> int | None:
    """The axis of a broadcast operand, or ``None`` where the operand is the same for all positions."""
    if value is None:
        return None
    own = axis - (size - len(dims_of(value)))
    return own if own >= 0 and dims_of(value)[own] != 1 else None


def _keeps_axis(node: ir.Node, axis: int) -> bool:
    before, after = dims_of(operand(node)), dims_of(node.outputs[0])
    unsure = any(dim is None for dim in before[: axis + 1]) or len(before) <= axis
    # With one position left at most one size may still be open, so that the new shape can be written down.
    rest: list[Dim] = [dim for i, dim in enumerate(after) if i != axis]
    return not unsure and before[: axis + 1] == after[: axis + 1] and sum(not isinstance(d, int) for d in rest) <= 1


def _rebuild(graph: ir.Graph, end: ir.Node, source: ir.Value, wanted: dict[ir.Value, _Selection]) -> None:
    """Write the wanted part of the graph again for one position, and let ``end`` read it."""
    emit = Emitter(graph)
    new: dict[ir.Value, ir.Value] = {}
    before = len(graph)
    for node in [node for node in graph if node.outputs[0] in wanted]:
        position = wanted[node.outputs[0]]
        axes = _input_axes(node, position.axis)
        assert axes is not None
        inputs = [
            _narrowed(emit, value, axis, position.index, new) for value, axis in zip(node.inputs, axes, strict=True)
        ]
        if node.op_type == "Reshape":
            inputs[1] = emit.ints(*_shape(node, position.axis))
        emit.scope = node.name or ""
        new[node.outputs[0]] = _copy(node, inputs, position.axis, graph)
    selected = emit.op("Squeeze", new[source], emit.ints(wanted[source].axis))
    made = list(graph)[before:]
    graph.remove(made)
    end.prepend(made)  # they were appended at the end, and belong before the node that reads them
    replace_value(end.outputs[0], selected)
    remove_node(end)


def _narrowed(
    emit: Emitter, value: ir.Value | None, axis: int | None, index: int, new: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    if value is None or axis is None:
        return value
    if value not in new:
        end = LAST if index == -1 else index + 1
        new[value] = emit.op("Slice", value, emit.ints(index), emit.ints(end), emit.ints(axis))
    return new[value]


def _copy(node: ir.Node, inputs: Sequence[ir.Value | None], axis: int, graph: ir.Graph) -> ir.Value:
    copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=f"{node.name}/narrow")
    graph.append(copy)
    copy.outputs[0].type = node.outputs[0].type
    copy.outputs[0].shape = ir.Shape(1 if i == axis else dim for i, dim in enumerate(dims_of(node.outputs[0])))
    return copy.outputs[0]


def _shape(node: ir.Node, axis: int) -> list[int]:
    return [1 if i == axis else dim if isinstance(dim, int) else -1 for i, dim in enumerate(dims_of(node.outputs[0]))]
