"""The gradient of a graph that runs for each slice of some tensors: a slice is computed again, with its gradient."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.autodiff.registry import ZERO, Flat, Gradients, rule
from edgepeft_export.autodiff.walk import differentiate_from
from edgepeft_export.graph.custom_ops import DOMAIN, MAP
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands
from edgepeft_export.graph.nested.bodies import isolate, rejoin
from edgepeft_export.graph.nested.groups import Groups
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.opset import IR_VERSION


@rule(MAP, domain=DOMAIN)
def mapped(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Another map, over the same slices and those of dy. No result within a slice is kept for it.

    The gradient of a tensor that all slices share is the sum of those of the slices.
    """
    size, *values = operands(node)
    groups = Groups.of(node)
    body, found = _gradient_body(node, groups.sliced, emit.graph)
    settings = {
        "axis": groups.axis,
        "sliced": groups.sliced + 1,
        "exact": int(groups.exact),
        "sums": sum(index >= groups.sliced for index in found),
    }
    inputs = [size, *values[: groups.sliced], dy, *values[groups.sliced :]]
    results = emit.ops(MAP, *inputs, outputs=len(found), domain=DOMAIN, body=body, **settings)
    gradients: list[ir.Value | Flat] = [ZERO] * len(values)
    for index, gradient in zip(found, results, strict=True):
        gradient.shape, gradient.type = values[index].shape, values[index].type
        gradients[index] = gradient
    return [ZERO, *gradients]


def _gradient_body(node: ir.Node, sliced: int, graph: ir.Graph) -> tuple[ir.Graph, list[int]]:
    """From the slices, one of dy, and shared tensors, to the gradients of those that are wanted and have one.

    Returns:
        The graph, and the indices of the inputs whose gradients it returns.
    """
    body = node.attributes["body"].as_graph().clone(allow_outer_scope_values=True)
    twins = isolate(body)
    given, y = list(body.inputs), body.outputs[0]
    dy = ir.Value(name="slice.gradient", shape=y.shape, type=y.type)
    body.inputs.insert(sliced, dy)
    wanted = sorted(node.attributes["wanted"].as_ints())
    gradients = differentiate_from(body, {y: dy}, [given[index] for index in wanted])
    found = [index for index in wanted if given[index] in gradients]
    emit = Emitter(body, scope="slice")
    body.outputs[:] = [emit.op("Identity", gradients[given[index]]) for index in found]
    for output, index in zip(body.outputs, found, strict=True):
        output.shape, output.type = given[index].shape, given[index].type
    model = ir.Model(body, ir_version=IR_VERSION)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    infer_shapes(model)
    rejoin(body, twins, graph)
    return body, found
