"""Divides the nodes of a forward graph into segments, which run one after the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.nested.bodies import reads
from edgepeft_export.program.reads import depending_on


@dataclass(frozen=True)
class Segment:
    """Nodes that run together.

    Attributes:
        nodes: in the order of the graph; those that compute constants are in each segment that reads them.
        inputs: graph inputs that are no parameters, and values of earlier segments, in the order of the nodes.
        outputs: values that later segments read, and outputs of the graph, in the order of the nodes.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def numbers_of(graph: ir.Graph, cuts: Sequence[ir.Value]) -> dict[ir.Node, int]:
    """The segment of each node that depends on an input of the graph.

    Segment 0 has what is computed before the first cut, and what several segments read and does not depend on a cut
    value: masks, positions. A node that only one later segment needs, and that reads nothing but values which cross
    cuts anyway, runs in that segment: a decoder's block computes its keys from the encoder's output, and the last
    segment the weight of the loss from the labels.
    """
    order, given = list(graph), set(cuts)
    dynamic = depending_on(order, list(graph.inputs))
    order = [node for node in order if any(output in dynamic or output.is_graph_output() for output in node.outputs)]
    numbers = _earliest(order, cuts)
    _move_to_readers(order, numbers, given, graph)
    return numbers


def _earliest(order: Sequence[ir.Node], cuts: Sequence[ir.Value]) -> dict[ir.Node, int]:
    after = {value: index + 1 for index, value in enumerate(cuts)}
    numbers: dict[ir.Node, int] = {}
    for node in order:
        needed = [after.get(value, _number(value, numbers, 0)) for value in reads(node)]
        numbers[node] = max(needed, default=0)
    return numbers


def _number(value: ir.Value, numbers: Mapping[ir.Node, int], default: int) -> int:
    producer = value.producer()
    return default if producer is None else numbers.get(producer, default)


def _move_to_readers(
    order: Sequence[ir.Node], numbers: dict[ir.Node, int], cuts: Collection[ir.Value], graph: ir.Graph
) -> None:
    """Move nodes that only one later segment needs into that segment."""
    movable = _movable(order, numbers, cuts)
    readers = {value.producer(): {len(cuts)} for value in graph.outputs}  # outputs are read at the end
    for node in reversed(order):
        wanted = readers.get(node, set())
        if node in movable and len(wanted) == 1 and not any(output in cuts for output in node.outputs):
            numbers[node] = next(iter(wanted))
        for value in reads(node):
            producer = value.producer()
            if producer in numbers:
                readers.setdefault(producer, set()).add(numbers[node])


def _movable(order: Sequence[ir.Node], numbers: Mapping[ir.Node, int], cuts: Collection[ir.Value]) -> set[ir.Node]:
    """Nodes of segment 0, and those that read only what crosses cuts or is computed by such nodes."""
    movable: set[ir.Node] = set()
    for node in order:
        if numbers[node] == 0 or all(
            value in cuts or value.producer() not in numbers or value.producer() in movable for value in reads(node)
        ):
            movable.add(node)
    return movable


def segments_of(graph: ir.Graph, numbers: Mapping[ir.Node, int], parameters: Collection[str]) -> list[Segment]:
    """The segments, in the order of their numbers. A number without nodes has none."""
    given = {value for value in graph.inputs if value.name not in parameters}
    members: dict[int, list[ir.Node]] = {}
    for node in graph:
        if node in numbers:
            members.setdefault(numbers[node], []).append(node)
    crossing = set(graph.outputs)
    for node, number in numbers.items():
        crossing.update(value for value in reads(node) if _number(value, numbers, number) != number)
    return [_segment(members[number], given, crossing, numbers) for number in sorted(members)]


def _segment(
    members: Sequence[ir.Node],
    given: Collection[ir.Value],
    crossing: Collection[ir.Value],
    numbers: Mapping[ir.Node, int],
) -> Segment:
    own = set(members)
    nodes: dict[ir.Node, None] = {}
    inputs: dict[ir.Value, None] = {}
    for node in members:
        for value in reads(node):
            producer = value.producer()
            if value in given or (producer in numbers and producer not in own):
                inputs[value] = None
            elif producer not in numbers:
                nodes.update(dict.fromkeys(_constants(producer)))
        nodes[node] = None
    outputs = [output for node in members for output in node.outputs if output in crossing]
    return Segment(tuple(nodes), tuple(inputs), tuple(outputs))


def _constants(node: ir.Node | None) -> list[ir.Node]:
    """The nodes that compute a constant, in order; none for an initializer."""
    if node is None:
        return []
    before = [earlier for value in reads(node) for earlier in _constants(value.producer())]
    return [*before, node]
