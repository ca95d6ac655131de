"""Computes activations a second time in the backward, instead of keeping them from the forward on.

Checkpointing of Chen et al. (2016), on the graph: the forward is cut where a single large tensor passes from one part
to the next (the residual stream between two halves of a block). That tensor is kept; what lies inside a part, and is
read by the backward, is computed again from it when the backward has come there.

A runtime merges equal nodes, and orders nodes by what they read. So a part is computed again from a *gated* copy of its
input: reshaped to its own shape plus 0 · the shape of a gradient that only exists when the backward has come there. To
the runtime that is another tensor, it costs nothing (the bytes are not copied), and it cannot be had too early.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.errors import NothingToRecompute, UnknownRecomputeMode
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import MATMULS
from edgepeft_export.graph.shapes import is_float

MODES = ("none", "block")
"""``none`` keeps every activation that the backward reads; ``block`` keeps one tensor per part."""


@dataclass(frozen=True)
class _Part:
    """Forward nodes between two cuts, in order; the last one makes the tensor of the second cut."""

    nodes: tuple[ir.Node, ...]


def recompute(model: ir.Model, losses: Sequence[ir.Value], mode: str) -> int:
    """Edit a train graph in place; losses and gradients stay the same.

    Args:
        model: forward and backward, in topological order, as it will be written: nothing that merges equal nodes may
            come after.
        losses: the outputs that are the forward's: what they are computed from is the forward.
        mode: one of :data:`MODES`.

    Returns:
        The number of nodes that run twice.

    Raises:
        EdgepeftError: the mode is unknown, or nothing can be computed twice.
    """
    if mode not in MODES:
        raise UnknownRecomputeMode(
            f"There is no way of recomputing named {mode!r}.",
            context=None,
            hint=f"choose one of {', '.join(MODES)}.",
        )
    if mode == "none":
        return 0
    forward = _ancestors(losses)
    order = [node for node in model.graph if node in forward]
    backward = [node for node in model.graph if node not in forward]
    spine = _spine(order)
    parts = _parts(order, spine)
    copied = 0
    for part in reversed(parts[:-1]):  # the last part's backward comes at once
        copied += _again(model.graph, part, backward, spine)
    if not copied:
        raise NothingToRecompute(
            "There is no activation that could be computed a second time instead of kept.",
            context="parts between which a single tensor passes, and whose size only the run knows, are looked for",
            hint="leave recompute at none, or let the batch size be free.",
        )
    model.graph.sort()
    return copied


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """All nodes that the values are computed from."""
    found: set[ir.Node] = set()
    left = [value.producer() for value in values]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [value.producer() for value in node.inputs if value is not None]
    return found


def _spine(order: Sequence[ir.Node]) -> set[ir.Value]:
    """Float tensors with a matmul before them: the stream of activations, without masks, positions and look-ups."""
    spine: set[ir.Value] = set()
    for node in order:
        if node.op_type in MATMULS or any(value in spine for value in node.inputs):
            spine.update(output for output in node.outputs if _is_activation(output))
    return spine


def _is_activation(value: ir.Value) -> bool:
    return is_float(value) and value.shape is not None and len(value.shape) > 0


def _parts(order: Sequence[ir.Node], spine: set[ir.Value]) -> list[_Part]:
    """The forward, cut where one tensor of the spine is all that later nodes read.

    A part has two matmuls at least: in a plain chain of layers every tensor would be a cut, and kept.
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
            parts.append(_Part(tuple(order[start : at + 1])))
            start, matmuls = at + 1, 0
    return [*parts, _Part(tuple(order[start:]))]


def _again(graph: ir.Graph, part: _Part, backward: Sequence[ir.Node], spine: set[ir.Value]) -> int:
    """Let the backward read second copies of what a part computed; returns the number of nodes copied."""
    kept = set(part.nodes[-1].outputs)  # the next part's input
    made = {output for node in part.nodes for output in node.outputs} & _worth(part, spine)
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


def _worth(part: _Part, spine: set[ir.Value]) -> set[ir.Value]:
    """What is large: the spine, and integers made of it (rounded activations)."""
    rounded = {
        node.outputs[0] for node in part.nodes if node.op_type == "DynamicQuantizeLinear" and node.inputs[0] in spine
    }
    return spine | rounded


def _arriving(backward: Sequence[ir.Node], made: set[ir.Value], spine: set[ir.Value]) -> ir.Value | None:
    """A gradient that comes before all that depends on the part, and whose size only the run knows.

    What the backward computes from other parts of the spine is a gradient, or comes as late as one.
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
    """The first axis whose size the runtime cannot know before the run, and so not fold."""
    if value.shape is None or not is_float(value):
        return None
    return next((axis for axis, dim in enumerate(value.shape) if not isinstance(dim, int)), None)


class _Copier:
    """Writes nodes of a part a second time, from gated inputs."""

    def __init__(
        self, graph: ir.Graph, part: _Part, kept: set[ir.Value], spine: set[ir.Value], gradient: ir.Value
    ) -> None:
        self._emit = Emitter(graph)
        self._nodes = set(part.nodes)
        self._kept, self._spine, self._gradient = kept, spine, gradient
        self._copies: dict[ir.Value, ir.Value] = {}
        self._zero: ir.Value | None = None
        self.count = 0

    def copy(self, value: ir.Value) -> ir.Value:
        """The second copy of a tensor; what is cheap and small is read where it is."""
        if value not in self._copies:
            self._copies[value] = self._made(value)
        return self._copies[value]

    def _made(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        if value in self._kept or node not in self._nodes or node is None:
            return self._gated(value) if _is_activation(value) and node is not None else value
        if value not in self._spine and node.op_type != "DynamicQuantizeLinear":
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

    def _gated(self, value: ir.Value) -> ir.Value:
        emit = self._emit
        if self._zero is None:
            axis = _open_axis(self._gradient)
            assert axis is not None  # _arriving() has chosen it so
            size = emit.op("Shape", self._gradient, start=axis, end=axis + 1)
            self._zero = emit.op("Sub", size, size)
        same = emit.op("Reshape", value, emit.op("Add", emit.op("Shape", value), self._zero), allowzero=1)
        same.shape, same.type = value.shape, value.type
        return same
