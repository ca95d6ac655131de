"""Constants of branches and loops belong to the graph around them, where each is found by its name and stored once."""

from __future__ import annotations

import re

import onnx_ir as ir

from edgepeft_export.graph.edit import remove_node


def hoist_constants(model: ir.Model) -> None:
    """Move initializers and tensors of ``Constant`` nodes of all inner graphs to the model's graph, in place."""
    for graph in list(model.graph.subgraphs()):
        for value in list(graph.initializers.values()):
            if not value.is_graph_input():
                del graph.initializers[str(value.name)]
                _store(model.graph, graph, value, ir.Value(name=value.name, const_value=value.const_value))
        for node in [node for node in graph if node.op_type == "Constant" and not node.domain]:
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                old = node.outputs[0]
                new = ir.Value(name=old.name, const_value=tensor)
                _store(model.graph, graph, old, new)
                remove_node(node)
    for value in list(model.graph.initializers.values()):
        if re.fullmatch(r"val_\d+", str(value.name)):  # onnx_ir names new values so, if no node has them
            value.name = f"constant.{value.name}"
    for number, graph in enumerate(model.graph.subgraphs()):  # values outside may have these names, now or later
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.name:
                value.name = f"{graph.name or 'graph'}.{number}/{value.name}"


def hoist_unchanged(model: ir.Model) -> None:
    """Let bodies of loops read a state that they never change from the graph around them, in place.

    TensorFlow passes a loop its weights as such states.
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type == "Loop" and not node.domain:
            body = node.attributes["body"].as_graph()
            for index, state in enumerate(body.inputs[2:]):
                outer = node.inputs[2 + index]
                if outer is not None and _passed_on(body.outputs[1 + index]) is state:
                    for use in [use for use in state.uses() if use.node.op_type != "Identity"]:
                        use.node.replace_input_with(use.idx, outer)


def _passed_on(value: ir.Value) -> ir.Value:
    """The value of a body's output, before nodes that change nothing."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _store(graph: ir.Graph, inner: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Make ``new`` an initializer of the outer graph; the inner graph's readers and outputs of ``old`` read it."""
    tensor = new.const_value
    assert tensor is not None
    new.shape, new.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
    name, number = str(new.name), 0
    while name in graph.initializers:
        number += 1
        name = f"{new.name}.{number}"
    new.name = name
    graph.register_initializer(new)
    if old.is_graph_output():
        identity = ir.node("Identity", [new], name=f"{name}/Identity")
        inner.append(identity)
        identity.outputs[0].name, identity.outputs[0].type, identity.outputs[0].shape = old.name, new.type, new.shape
        inner.outputs[:] = [identity.outputs[0] if output is old else output for output in inner.outputs]
    for use in [use for use in old.uses() if use.node.op_type != "Identity" or use.node.inputs[0] is not new]:
        use.node.replace_input_with(use.idx, new)
