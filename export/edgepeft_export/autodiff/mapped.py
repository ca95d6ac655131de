"""The gradient of a graph that runs for each slice of some tensors: a slice is computed again, with its gradient."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.autodiff.registry import ZERO, Flat, Gradients, rule
from edgepeft_export.autodiff.walk import differentiate
from edgepeft_export.graph.custom_ops import DOMAIN, MAP
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands
from edgepeft_export.graph.nested.bodies import isolate, rejoin
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.opset import IR_VERSION


@rule(MAP, domain=DOMAIN)
def mapped(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    """Another map, over the same slices and those of dy. No result within a slice is kept for it."""
    size, *values = operands(node)
    wanted = list(node.attributes["wanted"].as_ints())
    body = _gradient_body(node.attributes["body"].as_graph(), len(values), wanted, emit.graph)
    found = emit.ops(MAP, size, *values, dy, outputs=len(wanted), domain=DOMAIN, body=body)
    gradients: list[ir.Value | Flat] = [ZERO] * len(values)
    for index, gradient in zip(wanted, found, strict=True):
        gradient.shape, gradient.type = values[index].shape, values[index].type
        gradients[index] = gradient
    return [ZERO, *gradients]


def _gradient_body(forward: ir.Graph, slices: int, wanted: list[int], graph: ir.Graph) -> ir.Graph:
    """From ``slices`` of a body and one of dy to the gradients of the slices ``wanted``."""
    body = forward.clone(allow_outer_scope_values=True)
    twins = isolate(body)
    y = body.outputs[0]
    dy = ir.Value(name="slice.gradient", shape=y.shape, type=y.type)
    body.inputs.insert(slices, dy)
    emit = Emitter(body, scope="slice")
    weighted = emit.op("Mul", y, dy)
    weighted.shape = y.shape
    total = emit.op("ReduceSum", weighted, keepdims=0)
    total.shape = ir.Shape([])
    gradients = differentiate(body, total, [body.inputs[index] for index in wanted])
    body.outputs[:] = [gradients[body.inputs[index]] for index in wanted]
    model = ir.Model(body, ir_version=IR_VERSION)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    infer_shapes(model)
    rejoin(body, twins, graph)
    return body
