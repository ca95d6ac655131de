"""Recomputes activations in the backward, instead of keeping them from the forward on.

Checkpointing of Chen et al. (2016), on the graph: the forward is cut where a single large tensor passes from one part
to the next (the residual stream between two halves of a block). That tensor is kept. Values inside a part that
the backward reads are recomputed from it when the backward reaches the part.

A runtime merges equal nodes, and orders nodes by what they read. So a part is recomputed from a copy of its
input with a *control dependency*: reshaped to its own shape plus 0 · the shape of a gradient that only exists when the
backward reaches the part. To the runtime that is another tensor, it costs nothing (the bytes are not copied), and it
cannot be computed too early.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from edgepeft_export.errors import NothingToRecompute, UnknownRecomputeMode
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import MATMULS
from edgepeft_export.graph.shapes import is_float
from edgepeft_runtime.names import did_you_mean

MODES = ("none", "block")
"""``none`` keeps every activation that the backward reads; ``block`` keeps one tensor per part."""

_ROUNDS = ("DynamicQuantizeLinear", "QuantizeLinear")
"""Operators that round activations."""

Segment = Sequence[ir.Node]
"""Forward nodes between two cuts, in order. The last one computes the tensor of the second cut."""


def recompute(model: ir.Model, losses: Sequence[ir.Value], mode: str) -> int:
    """Let a train graph recompute activations, in place. Losses and gradients stay the same.

    Args:
        model: forward and backward, in topological order and final: no pass that merges equal nodes may follow.
        losses: the outputs of the forward, which consists of the nodes that they are computed from.
        mode: one of :data:`MODES`.

    Returns:
        The number of nodes that run twice.

    Raises:
        EdgepeftError: the mode is unknown, or nothing can be computed twice.
    """
    if mode not in MODES:
        raise UnknownRecomputeMode(
            f"There is no recompute mode named {mode!r}.",
            context=f"there are: {', '.join(MODES)}",
            hint=did_you_mean(mode, MODES),
        )
    if mode == "none":
        return 0
    forward = _ancestors(losses)
    order = [node for node in model.graph if node in forward]
    backward = [node for node in model.graph if node not in forward]
    spine = _spine(order)
    parts = _parts(order, spine)
    copied = 0
    for part in reversed(parts[:-1]):  # the last part's backward comes right after it
        copied += _again(model.graph, part, backward, spine)
    if not copied:
        raise NothingToRecompute(
            "There is no activation that could be recomputed instead of kept.",
            context="the graph has no parts that only a single tensor of free size connects",
            hint="leave recompute at none, or let the batch size be free.",
        )
    model.graph.sort()
    return copied


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """All nodes that the values are computed from."""
    nodes: set[ir.Node] = set()
    queue = [value.producer() for value in values]
    while queue:
        node = queue.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            queue += [value.producer() for value in node.inputs if value is not None]
    return nodes


def _spine(order: Sequence[ir.Node]) -> set[ir.Value]:
    """Float tensors with a matmul before them: the stream of activations, without masks, positions and look-ups."""
    spine: set[ir.Value] = set()
    for node in order:
        if node.op_type in MATMULS or any(value in spine for value in node.inputs):
            spine.update(output for output in node.outputs if _is_activation(output))
    return spine


def _is_activation(value: ir.Value) -> bool:
    return is_float(value) and value.shape is not None and len(value.shape) > 0


def _parts(order: Sequence[ir.Node], spine: set[ir.Value]) -> list[Segment]:
    """The forward, cut where later nodes read a single tensor of the spine.

    A part has at least two matmuls. In a plain chain of layers every tensor would otherwise be a cut, and kept.
    """
    last_use: dict[ir.Value, int] = {}
    for at, node in enumerate(order):
        for value in node.inputs:
            if value in spine:
                last_use[value] = at
    parts, start, matmuls = [], 0, 0
    open_values: set[ir.Value] = set()
    for at, node in enumerate(order):
        open_values |= {output for output in node.outputs if last_use.get(output, -1) > at}
        open_values = {value for value in open_values if last_use[value] > at}
        matmuls += node.op_type in MATMULS
        if matmuls >= 2 and len(open_values) == 1 and next(iter(open_values)) in node.outputs:
            parts.append(order[start : at + 1])
            start, matmuls = at + 1, 0
    return [*parts, order[start:]]


def _again(graph: ir.Graph, part: Segment, backward: Sequence[ir.Node], spine: set[ir.Value]) -> int:
    """Let the backward read second copies of a part's values. Returns the number of nodes copied."""
    kept = set(part[-1].outputs)  # the next part's input
    made = {output for node in part for output in node.outputs} & _worth(part, spine)
    readers = [node for node in backward if any(value in made - kept for value in node.inputs)]
    gradient = _arriving(backward, made - kept, spine)
    if gradient is None:
        return 0
    copier = _Copier(graph, part, kept, spine, gradient)
    for node in readers:
        for index, value in enumerate(node.inputs):
            if value is not None and value in made and value not in kept:
                node.replace_input_with(index, copier.copy(value))
    return copier.count


def _worth(part: Segment, spine: set[ir.Value]) -> set[ir.Value]:
    """The large values: the spine, and integers computed from it (rounded activations)."""
    rounded = {node.outputs[0] for node in part if node.op_type in _ROUNDS and node.inputs[0] in spine}
    return spine | rounded


def _arriving(backward: Sequence[ir.Node], made: set[ir.Value], spine: set[ir.Value]) -> ir.Value | None:
    """A gradient of free size that comes before everything in the backward that depends on the part.

    A value that the backward computes from other parts of the spine is a gradient, or comes as late as one.
    """
    depends, gradients = set(made), set[ir.Value]()
    for node in backward:
        if any(value in depends for value in node.inputs):
            for value in node.inputs:
                if value is not None and value in gradients and value not in depends and _open_axis(value) is not None:
                    return value
            depends.update(node.outputs)
        if any(value in gradients or value in spine for value in node.inputs):
            gradients.update(node.outputs)
    return None


def _open_axis(value: ir.Value) -> int | None:
    """The first axis of free size, which the runtime cannot fold."""
    if value.shape is None or not is_float(value):
        return None
    return next((axis for axis, dim in enumerate(value.shape) if not isinstance(dim, int)), None)


class _Copier:
    """Emits nodes of a part a second time, from inputs with a control dependency."""

    def __init__(
        self, graph: ir.Graph, part: Segment, kept: set[ir.Value], spine: set[ir.Value], gradient: ir.Value
    ) -> None:
        self._emit = Emitter(graph)
        self._nodes = set(part)
        self._kept, self._spine, self._gradient = kept, spine, gradient
        self._copies: dict[ir.Value, ir.Value] = {}
        self._zero: ir.Value | None = None
        self.count = 0

    def copy(self, value: ir.Value) -> ir.Value:
        """The second copy of a tensor. Cheap and small values are read from the forward."""
        if value not in self._copies:
            self._copies[value] = self._made(value)
        return self._copies[value]

    def _made(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        if value in self._kept or node not in self._nodes or node is None:
            return self._with_dependency(value) if _is_activation(value) and node is not None else value
        if value not in self._spine and node.op_type not in _ROUNDS:
            return value
        inputs = [None if given is None else self.copy(given) for given in node.inputs]
        again = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            node.attributes.values(),
            num_outputs=len(node.outputs),
            name=f"{node.name}/again",
        )
        self._emit.graph.append(again)
        self.count += 1
        for old, new in zip(node.outputs, again.outputs, strict=True):
            new.shape, new.type = old.shape, old.type
            self._copies[old] = new
        return self._copies[value]

    def _with_dependency(self, value: ir.Value) -> ir.Value:
        emit = self._emit
        if self._zero is None:
            axis = _open_axis(self._gradient)
            assert axis is not None  # _arriving() has chosen such a gradient
            size = emit.op("Shape", self._gradient, start=axis, end=axis + 1)
            self._zero = emit.op("Sub", size, size)
        same = emit.op("Reshape", value, emit.op("Add", emit.op("Shape", value), self._zero), allowzero=1)
        same.shape, same.type = value.shape, value.type
        return same
