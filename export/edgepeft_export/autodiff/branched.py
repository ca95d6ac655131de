"""The gradient of a branch with a condition that only the run knows: the same branch of gradients."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.autodiff.registry import ZERO, Flat, Gradients, Upstream, rule_of_outputs
from edgepeft_export.autodiff.walk import differentiate_from
from edgepeft_export.graph.custom_ops import BRANCH, DOMAIN
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands
from edgepeft_export.graph.nested.bodies import isolate, rejoin
from edgepeft_export.graph.nested.branches import OTHERWISE, THEN
from edgepeft_export.graph.shapes import infer_shapes, is_float
from edgepeft_export.opset import IR_VERSION


@rule_of_outputs(BRANCH, domain=DOMAIN)
def branch(node: ir.Node, upstream: Upstream, emit: Emitter) -> Gradients:
    """Another branch on the same condition, which computes the taken one again, with its gradient."""
    condition, *values = operands(node)
    wanted = [index for index, value in enumerate(values) if is_float(value)]
    arriving = {index: dy for index, dy in enumerate(upstream) if dy is not None}
    bodies = {
        name: _gradient_body(node.attributes[name].as_graph(), list(arriving), wanted, emit.graph)
        for name in (THEN, OTHERWISE)
    }
    inputs = condition, *values, *arriving.values()
    found = emit.ops(BRANCH, *inputs, outputs=len(wanted), domain=DOMAIN, **bodies)
    gradients: list[ir.Value | Flat] = [ZERO] * len(values)
    for index, gradient in zip(wanted, found, strict=True):
        gradient.shape, gradient.type = values[index].shape, values[index].type
        gradients[index] = gradient
    return [ZERO, *gradients]


def _gradient_body(forward: ir.Graph, arriving: list[int], wanted: list[int], graph: ir.Graph) -> ir.Graph:
    """From the inputs of a body and the gradients of its outputs ``arriving`` to those of its inputs ``wanted``."""
    body = forward.clone(allow_outer_scope_values=True)
    given, twins = list(body.inputs), isolate(body)
    model = ir.Model(body, ir_version=IR_VERSION)
    infer_shapes(model)
    upstream = {}
    for position, index in enumerate(arriving):
        y = body.outputs[index]
        dy = ir.Value(name=f"gradient.{index}", shape=y.shape, type=y.type)
        body.inputs.insert(len(given) + position, dy)
        upstream[y] = dy
    targets = [given[index] for index in wanted]
    found = differentiate_from(body, upstream, targets)
    emit = Emitter(body, scope="branch")
    made = [found.get(x) or emit.zeros(emit.shape_of(x), like=x) for x in targets]
    body.outputs[:] = [emit.op("Identity", gradient) for gradient in made]
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    infer_shapes(model)
    rejoin(body, twins, graph)
    return body
