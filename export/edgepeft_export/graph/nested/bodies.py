"""Graphs within a graph: they are edited alone, with stand-ins for the values of the graph around them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.opset import IR_VERSION

HOISTED = 64
"""Elements. Larger constants of a body belong to the graph around it, where they are stored once."""


def captured(body: ir.Graph) -> list[ir.Value]:
    """The values of the graph around a body that it, or a graph within it, reads or returns, in order."""
    inner = [body, *body.subgraphs()]
    nodes = [node for graph in inner for node in graph]
    own = {value for graph in inner for value in (*graph.inputs, *graph.initializers.values())}
    own |= {output for node in nodes for output in node.outputs}
    read = [value for node in nodes for value in node.inputs] + [value for graph in inner for value in graph.outputs]
    return [value for value in dict.fromkeys(read) if value is not None and value not in own]


def reads(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node, and the values of the graph around it that its graphs read."""
    values = [value for value in node.inputs if value is not None]
    return values + [value for graph in graphs_of(node) for value in captured(graph)]


def graphs_of(node: ir.Node) -> list[ir.Graph]:
    """The graphs of a loop or of a branch."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs += attribute.as_graphs()
    return graphs


def substitute(body: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let a body, and the graphs within it, read and return another value."""
    for graph in (body, *body.subgraphs()):
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is old:
                    node.replace_input_with(index, new)
        if any(output is old for output in graph.outputs):
            graph.outputs[:] = [new if output is old else output for output in graph.outputs]


def isolate(body: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Let a body read stand-ins, in place, so that it is a graph by itself. Returns them by what they stand for."""
    twins = {value: stand_in(body, value) for value in captured(body)}
    for value, twin in twins.items():
        substitute(body, value, twin)
    return twins


def stand_in(body: ir.Graph, value: ir.Value) -> ir.Value:
    """A value of the body for one of the graph around it: with its content, where gradient rules may read that."""
    twin = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
    if value.is_initializer() and not value.is_graph_input():
        body.register_initializer(twin)
    else:
        twin.const_value = None
        body.inputs.append(twin)
    return twin


def rejoin(body: ir.Graph, twins: Mapping[ir.Value, ir.Value], graph: ir.Graph) -> None:
    """Let a body read the values of the graph around it again, in place, and store its large constants there."""
    for outer, twin in twins.items():
        body.initializers.pop(str(twin.name), None)
        twin.replace_all_uses_with(outer)
    body.inputs[:] = [value for value in body.inputs if value not in set(twins.values())]
    for value in list(body.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.size > HOISTED:
            del body.initializers[str(value.name)]
            value.replace_all_uses_with(Emitter(graph).stored(f"{value.name}", tensor))


def infer_body(body: ir.Graph, graph: ir.Graph) -> None:
    """Make the names in a new body unique and infer its shapes, in place, before it becomes a part of ``graph``."""
    twins = isolate(body)
    model = ir.Model(body, ir_version=IR_VERSION)
    common.NameFixPass()(model)
    infer_shapes(model)
    rejoin(body, twins, graph)


def give_inputs(body: ir.Graph, values: list[ir.Value]) -> None:
    """Let a body read inputs instead of values around it, and compute each output by a node of its own."""
    for value in values:
        inner = ir.Value(name=value.name, shape=value.shape, type=value.type)
        body.inputs.append(inner)
        substitute(body, value, inner)
    for index, output in enumerate(list(body.outputs)):
        identity = ir.node("Identity", [output], name=f"{body.name}/output.{index}")
        identity.outputs[0].type, identity.outputs[0].shape = output.type, output.shape
        body.append(identity)
        body.outputs[index] = identity.outputs[0]
