"""The graphs of a kind of segment, forward and backward, with canonical names of inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgepeft_export.autodiff import differentiate_from
from edgepeft_export.graph.edit import add_input, input_named
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of, dtype_of, static_dims
from edgepeft_export.opset import IR_VERSION
from edgepeft_export.optimizer_graph import flatten
from edgepeft_export.program.structure import Structure

INPUT, WEIGHT, PARAMETER, OUTPUT = "in", "weight", "parameter", "out"
UPSTREAM, GRADIENT = "upstream", "gradient"
"""Stems of names: ``upstream.N`` is the gradient of ``out.N``, ``gradient.in.N`` that of ``in.N``."""


def forward_graph(structure: Structure, opsets: Mapping[str, int]) -> ir.Model:
    """The graph of a segment. It still has operators of our own.

    Inputs are ``in.N``, ``weight.N`` and ``parameter.N``, outputs ``out.N``, in the order of the structure.
    """
    given = [*structure.inputs, *structure.weights, *structure.parameters]
    view = ir.GraphView(
        given,
        structure.outputs,
        nodes=structure.nodes,
        initializers=structure.frozen,
        opset_imports=dict(opsets),
        name="segment",
    )
    graph = view.clone()
    stems = [(INPUT, structure.inputs), (WEIGHT, structure.weights), (PARAMETER, structure.parameters)]
    names = [f"{stem}.{index}" for stem, values in stems for index in range(len(values))]
    for value, name in zip(graph.inputs, names, strict=True):
        value.name, value.const_value = name, None
    for index, value in enumerate(graph.outputs):
        value.name = f"{OUTPUT}.{index}"
    return ir.Model(graph, ir_version=IR_VERSION)


@dataclass(frozen=True)
class Wanted:
    """Which gradients arrive at a segment, and which are needed.

    Attributes:
        loss: the index of the output that is the loss; its gradient is 1.
        outputs: indices of outputs whose gradients arrive.
        inputs, parameters: indices of inputs and parameters whose gradients are needed.
    """

    loss: int | None
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    parameters: tuple[int, ...]


@dataclass(frozen=True)
class Backward:
    """A segment's graph and its gradient.

    Attributes:
        model: as ``forward_graph`` makes it, with ``upstream.N`` as further inputs, and ``gradient.in.N`` and
            ``gradient.parameter.N`` as further outputs, in the shapes of ``in.N`` and ``parameter.N``.
        inputs, parameters: the indices that have a gradient.
    """

    model: ir.Model
    inputs: tuple[int, ...]
    parameters: tuple[int, ...]


def backward_graph(forward: ir.Model, wanted: Wanted) -> Backward:
    """Differentiate ``sum(out.N · upstream.N)``, which recomputes what the forward graph computes.

    Raises:
        NoGradientRule: an operator between the outputs and what needs a gradient has no rule.
    """
    model = forward.clone()
    graph = model.graph
    outputs = list(graph.outputs)
    upstream: dict[ir.Value, ir.Value] = {}
    if wanted.loss is not None:
        loss = outputs[wanted.loss]
        upstream[loss] = Emitter(graph).scalar(1.0, like=loss)
    for index in wanted.outputs:
        value = outputs[index]
        upstream[value] = add_input(graph, f"{UPSTREAM}.{index}", dims_of(value), dtype_of(value))
    targets = [
        *(input_named(graph, f"{INPUT}.{index}") for index in wanted.inputs),
        *(input_named(graph, f"{PARAMETER}.{index}") for index in wanted.parameters),
    ]
    gradients = differentiate_from(graph, upstream, targets)
    emit = Emitter(graph, scope=GRADIENT)
    for target, gradient in gradients.items():
        _return(emit, f"{GRADIENT}.{target.name}", gradient, target)
    there = {str(target.name) for target in gradients}
    return Backward(
        model,
        tuple(index for index in wanted.inputs if f"{INPUT}.{index}" in there),
        tuple(index for index in wanted.parameters if f"{PARAMETER}.{index}" in there),
    )


def _return(emit: Emitter, name: str, value: ir.Value, like: ir.Value) -> None:
    """Return a value, which may be an input or another output as well."""
    result = emit.op("Identity", value)
    result.name, result.shape, result.type = name, like.shape, like.type
    emit.graph.outputs.append(result)


def flat_backward(backward: Backward, runs: Sequence[Sequence[int]], *, keep_outputs: bool) -> ir.Model:
    """A copy that returns ``gradient.in.N``, and ``gradient.N`` for each run of parameters, flat and joined.

    Args:
        backward: is not changed.
        runs: indices of parameters whose gradients lie side by side.
        keep_outputs: whether it also returns the segment's outputs.
    """
    model = backward.model.clone()
    graph = model.graph
    outputs = {str(value.name): value for value in graph.outputs}
    kept = [name for name in outputs if not name.startswith(GRADIENT)] if keep_outputs else []
    kept += [f"{GRADIENT}.{INPUT}.{index}" for index in backward.inputs]
    graph.outputs[:] = [outputs[name] for name in kept]
    emit = Emitter(graph, scope=GRADIENT)
    for number, run in enumerate(runs):
        members = [outputs[f"{GRADIENT}.{PARAMETER}.{index}"] for index in run]
        shapes = [tuple(static_dims(member) or ()) for member in members]
        flat = flatten(emit, members, shapes)
        flat.name, flat.shape, flat.dtype = (
            f"{GRADIENT}.{number}",
            ir.Shape([sum(map(prod, shapes))]),
            ir.DataType.FLOAT,
        )
        graph.outputs.append(flat)
    return model
