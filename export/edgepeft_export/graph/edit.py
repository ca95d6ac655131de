"""Edits of a graph in place, by the verbs of ``onnx_ir.editing`` (ONNX IR 1.2): one treatment of names and outputs.

A name belongs to a position in the graph. A replacement gets the name, the shape and the type, and an output of the
graph keeps its name whichever node computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import Dim


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of ``old`` read ``new``, which gets its name, shape and type and is an output where it was."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Replace a node by another with one output, which is in no graph yet."""
    old.prepend(new)
    replace_value(old.outputs[0], new.outputs[0])
    remove_node(old)


def rewrite_node(node: ir.Node, part: str, written: Callable[[Emitter], ir.Value]) -> None:
    """Replace a node with one output by what ``written`` emits. ``part`` follows the name of the node in theirs."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    before = len(graph)
    replace_value(node.outputs[0], written(Emitter(graph, f"{node.name}/{part}")))
    new = list(graph)[before:]
    graph.remove(new)
    node.prepend(new)
    remove_node(node)


def eliminate_node(node: ir.Node, input_index: int = 0) -> None:
    """Remove a node. Readers of its output read that input of it.

    The input keeps its name, shape and type where it has them. If the output is one of the graph, the input gets its
    name, has to be computed in the graph, and must be no output yet.
    """
    given, output = operand(node, input_index), node.outputs[0]
    if given.shape is None:
        given.shape = output.shape
    if given.type is None:
        given.type = output.type
    is_output, name = output.is_graph_output(), output.name
    output.replace_all_uses_with(given, replace_graph_outputs=True)
    if is_output:
        output.name, given.name = None, name
    remove_node(node)


def insert_on_edge(value: ir.Value, node: ir.Node) -> ir.Value:
    """Put a node that reads ``value`` between it and all its other readers. Returns the node's output."""
    producer, graph, result = value.producer(), value.graph, node.outputs[0]
    assert producer is not None and graph is not None
    result.shape, result.type = value.shape, value.type
    if value.is_graph_output():
        graph.outputs[:] = [result if output is value else output for output in graph.outputs]
        result.name, value.name = value.name, f"{value.name}.before"
    for use in [use for use in value.uses() if use.node is not node]:
        use.node.replace_input_with(use.idx, result)
    producer.append(node)
    return result


def remove_node(node: ir.Node) -> None:
    """Remove a node whose outputs have no readers."""
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def add_input(graph: ir.Graph, name: str, shape: Sequence[Dim], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """Append an input to a graph."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def input_named(graph: ir.Graph, name: str) -> ir.Value:
    """The input of that name, which the graph has."""
    return next(value for value in graph.inputs if value.name == name)


def fix_names(model: ir.Model) -> None:
    """Name every node and value uniquely, a value also among those of all subgraphs, in place.

    ONNX allows a name to be used in a loop and, after it, around it. onnxruntime refuses it.
    """
    common.NameFixPass()(model)
    taken = {value.name for value in _defined(model.graph)}
    for graph in model.graph.subgraphs():
        for value in _defined(graph):
            if value.name in taken:
                number = len(taken)
                while f"{value.name}.{number}" in taken:
                    number += 1
                value.name = f"{value.name}.{number}"
            taken.add(value.name)


def _defined(graph: ir.Graph) -> list[ir.Value]:
    made = [output for node in graph for output in node.outputs]
    return list(dict.fromkeys([*graph.inputs, *graph.initializers.values(), *made]))


def bind_inputs(graph: ir.Graph, values: Mapping[str, NDArray[np.generic]]) -> set[ir.Value]:
    """Turn the graph inputs named in ``values`` into initializers, and return them.

    A value may have another shape than its input, as the pairs of a stack do. Shapes between the nodes are then
    dropped, and onnxruntime infers them.
    """
    inputs = [value for value in graph.inputs if value.name in values]
    if any(value.shape != values[str(value.name)].shape for value in inputs):
        _forget_shapes(graph)
    for value in inputs:
        graph.inputs.remove(value)
        value.const_value = ir.tensor(values[str(value.name)], name=value.name)
        value.shape = ir.Shape(values[str(value.name)].shape)
        graph.register_initializer(value)
    return set(inputs)


def _forget_shapes(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
