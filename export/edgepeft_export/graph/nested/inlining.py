"""Replaces a node by the nodes of a graph: the body of a function, a branch, an iteration of a loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import new_initializer
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.shapes import forget_names, input_names


def inline(body: ir.Graph, given: Sequence[ir.Value | None], before: ir.Node, part: str = "") -> list[ir.Value | None]:
    """Move the nodes and initializers of a graph in front of a node, and return what its outputs have become.

    Args:
        body: is empty afterwards. It may read values of the graph around ``before``.
        given: what its inputs stand for; ``None`` for one that is left out.
        before: names of moved nodes and values begin with its name.
        part: which of several bodies it is; names have it next.
    """
    assert before.graph is not None
    stem = f"{before.name or before.op_type}/{part}".rstrip("/")
    outputs: list[ir.Value | None] = list(body.outputs)
    for inner, outer in zip(list(body.inputs), given, strict=True):
        _substitute(inner, outer)
        outputs = [outer if output is inner else output for output in outputs]
    body.inputs.clear()
    body.outputs.clear()
    for value in list(body.initializers.values()):
        del body.initializers[str(value.name)]
        value.name = _fresh(before.graph, f"{stem}/{value.name}")
        before.graph.register_initializer(value)
    nodes = list(body)
    forget_names(nodes, input_names(before.graph) if isinstance(before.graph, ir.Graph) else ())
    body.remove(nodes)
    for node in nodes:
        node.name = f"{stem}/{node.name or node.op_type}"
        for output in node.outputs:
            output.name = f"{stem}/{output.name}" if output.name else output.name
    before.prepend(nodes)
    return outputs


def _substitute(inner: ir.Value, outer: ir.Value | None) -> None:
    for use in list(inner.uses()):
        use.node.replace_input_with(use.idx, outer)


def _fresh(graph: ir.Graph, name: str) -> str:
    number, fresh = 0, name
    while fresh in graph.initializers:
        number += 1
        fresh = f"{name}.{number}"
    return fresh


class Inserter:
    """Writes nodes and constants in front of a node."""

    def __init__(self, before: ir.Node) -> None:
        assert before.graph is not None
        self._before, self._graph = before, before.graph

    def constant(self, content: int | bool | Sequence[int]) -> ir.Value:
        """An int64 or boolean constant."""
        array = np.asarray(content) if isinstance(content, bool) else np.asarray(content, np.int64)
        return new_initializer(self._graph, f"{self._before.name or self._before.op_type}/constant", array)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{self._before.name or self._before.op_type}/{op_type}")
        self._before.prepend(node)
        node.outputs[0].type = inputs[0].type
        return node.outputs[0]

    def pick(self, value: ir.Value, index: int, axis: int) -> ir.Value:
        """One index of an axis, without that axis."""
        return self.op("Gather", value, self.constant(index), axis=axis)

    def stack(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        """Values side by side, along a new axis."""
        at = self.constant([axis])
        return self.op("Concat", *(self.op("Unsqueeze", value, at) for value in values), axis=axis)


def replace_by(node: ir.Node, results: Sequence[ir.Value | None]) -> dict[ir.Value, ir.Value]:
    """Remove a node whose outputs have been computed otherwise. Returns the new value for each old one.

    A new value gets the name, the shape and the type of the old one.
    """
    replaced: dict[ir.Value, ir.Value] = {}
    for old, new in zip(node.outputs, results, strict=False):
        if new is None or not old.name:
            continue
        if new.producer() is None or new in replaced.values() or new.graph is not node.graph or new.is_graph_output():
            identity = ir.node("Identity", [new], name=f"{node.name or node.op_type}/Identity")
            node.prepend(identity)
            identity.outputs[0].shape, identity.outputs[0].type = new.shape, new.type
            new = identity.outputs[0]
        shape, dtype = (old.shape or new.shape), (old.type or new.type)
        replace_value(old, new)
        new.shape, new.type = shape, dtype
        replaced[old] = new
    remove_node(node)
    return replaced
