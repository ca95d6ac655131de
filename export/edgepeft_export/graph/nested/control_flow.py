"""Branches of constant condition and short loops, written as the nodes that run."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgepeft_export.graph.constants import known_number
from edgepeft_export.graph.match import present
from edgepeft_export.graph.nested.inlining import Inserter, inline, replace_by
from edgepeft_export.graph.nested.iterations import runs_on
from edgepeft_export.graph.shapes import dims_of

SHORT = 512
"""Nodes. A loop that would become no more is written as these: they run faster than its iterations."""

MOST_NODES = 4096
"""Nodes. A loop that would become more stays one, also where no gradient can cross it."""


def expand_control_flow(node: ir.Node, most: int = MOST_NODES) -> dict[ir.Value, ir.Value]:
    """Replace an ``If``, a ``Loop`` or a ``Scan`` by the nodes that it runs, where that is known and not too many.

    Args:
        node: any node.
        most: nodes that a loop may become.

    Returns:
        The new value for each output; empty where the node stays.
    """
    if node.domain:
        return {}
    if node.op_type == "If":
        return _branch(node)
    if node.op_type == "Loop":
        return _loop(node, most)
    return _scan(node, most) if node.op_type == "Scan" else {}


def _branch(node: ir.Node) -> dict[ir.Value, ir.Value]:
    condition = known_number(node.inputs[0])
    if condition is None:
        return {}
    taken = node.attributes["then_branch" if condition else "else_branch"].as_graph()
    return replace_by(node, inline(taken.clone(allow_outer_scope_values=True), [], node))


def _loop(node: ir.Node, most: int) -> dict[ir.Value, ir.Value]:
    """A loop whose number of iterations is known before it starts."""
    count, condition = known_number(node.inputs[0]), present(node, 1)
    body = node.attributes["body"].as_graph()
    if count is None or not runs_on(node) or int(count) * len(body) > most:
        return {}
    write = Inserter(node)
    states: list[ir.Value | None] = list(node.inputs[2:])
    collected: list[list[ir.Value]] = [[] for _ in body.outputs[1 + len(states) :]]
    for index in range(int(count)):
        given = [write.constant(index), condition or write.constant(True), *states]
        made = inline(body.clone(allow_outer_scope_values=True), given, node, f"{index}")
        states = made[1 : 1 + len(states)]
        for values, value in zip(collected, made[1 + len(states) :], strict=True):
            values.append(_present(value))
    if not count and collected:
        return {}
    return replace_by(node, [*states, *(write.stack(values, 0) for values in collected)])


def _scan(node: ir.Node, most: int) -> dict[ir.Value, ir.Value]:
    """A loop over the indices of an axis of known size."""
    body = node.attributes["body"].as_graph()
    scanned = node.attributes["num_scan_inputs"].as_int()
    kept = len(node.inputs) - scanned
    sources = [_present(value) for value in node.inputs[kept:]]
    if any(source.shape is None for source in sources):
        return {}
    axes = [
        axis % len(dims_of(source))
        for axis, source in zip(_ints(node, "scan_input_axes", scanned), sources, strict=True)
    ]
    lengths = {dims_of(source)[axis] for source, axis in zip(sources, axes, strict=True)}
    length = next((length for length in lengths if isinstance(length, int)), None)
    if not length or length * len(body) > most:
        return {}
    write, states = Inserter(node), list(node.inputs[:kept])
    backwards = _ints(node, "scan_input_directions", scanned)
    collected: list[list[ir.Value]] = [[] for _ in body.outputs[kept:]]
    for index in range(length):
        slices = [
            write.pick(source, length - 1 - index if back else index, axis)
            for source, axis, back in zip(sources, axes, backwards, strict=True)
        ]
        made = inline(body.clone(allow_outer_scope_values=True), [*states, *slices], node, f"{index}")
        states = made[:kept]
        for values, value in zip(collected, made[kept:], strict=True):
            values.append(_present(value))
    return replace_by(node, [*states, *_stacked(node, collected, write)])


def _stacked(node: ir.Node, collected: Sequence[list[ir.Value]], write: Inserter) -> list[ir.Value | None]:
    axes = _ints(node, "scan_output_axes", len(collected))
    backwards = _ints(node, "scan_output_directions", len(collected))
    return [
        write.stack(values[::-1] if back else values, axis)
        for values, axis, back in zip(collected, axes, backwards, strict=True)
    ]


def _ints(node: ir.Node, name: str, count: int) -> list[int]:
    given = node.attributes.get_ints(name, None)
    return [0] * count if given is None else list(given)


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
