"""A forward graph, a loss and an optimizer to the four graphs that a device runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.autodiff import Gap, differentiate, gaps
from edgepeft_export.emit import Emitter
from edgepeft_export.forward import Forward
from edgepeft_export.forward.graph import infer_shapes
from edgepeft_export.losses import Labels, Loss, LossTerms
from edgepeft_export.opset import IR_VERSION, OPSET, assert_runs_on_devices
from edgepeft_export.optimizers import Bucket, Optimizer, optimizer_graph, plan_buckets
from edgepeft_export.optimizers.base import flat_gradient
from edgepeft_runtime.errors import EdgepeftError


class NothingReachesLoss(EdgepeftError):
    """The loss depends on no trainable parameter."""


@dataclass(frozen=True)
class Compiled:
    """The graphs of a bundle, and what its manifest says of them.

    Attributes:
        graphs: ``train``, ``optimizer``, ``eval`` and ``infer``.
        parameters: first values of what trains.
        unreached: parameters that were asked to train and that the loss does not depend on; they stay frozen.
    """

    graphs: Mapping[str, ir.Model]
    parameters: Mapping[str, NDArray[np.generic]]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    labels: tuple[Labels, ...]
    buckets: tuple[Bucket, ...]
    unreached: tuple[str, ...]


def compile_step(forward: Forward, loss: Loss, optimizer: Optimizer) -> Compiled:
    """Build the graphs ``train``, ``optimizer``, ``eval`` and ``infer`` of the bundle's specification.

    Raises:
        NoGradientRule: an operator between the loss and a parameter has no gradient rule.
        UnsupportedOperator: a graph holds an operator that devices do not have.
        NothingReachesLoss: the loss depends on no parameter.
    """
    with_loss, _, labels = _attach_loss(forward, loss)
    train, unreached = _train_graph(with_loss, forward)
    kept = {name: value for name, value in forward.parameters.items() if name not in unreached}
    buckets = plan_buckets({name: value.shape for name, value in kept.items()})
    graphs = {
        "train": _accumulate(train, buckets),
        "optimizer": optimizer_graph(optimizer, buckets),
        "eval": with_loss,
        "infer": forward.model.clone(),
    }
    for name, model in graphs.items():
        if name != "optimizer":
            _freeze(model, {parameter: forward.parameters[parameter] for parameter in unreached})
        _sweep(model)
        assert_runs_on_devices(model)
    values = tuple(forward.input_values()), tuple(forward.model.graph.outputs)
    return Compiled(graphs, kept, *values, tuple(labels), buckets, tuple(unreached))


def missing_rules(forward: Forward, loss: Loss) -> list[Gap]:
    """Every node between the loss and a parameter that has no gradient rule; builds nothing else."""
    model, terms, _ = _attach_loss(forward, loss)
    return gaps(model.graph, terms.sum, [_input(model, name) for name in forward.parameters])


def _attach_loss(forward: Forward, loss: Loss) -> tuple[ir.Model, LossTerms, Sequence[Labels]]:
    """A copy of the forward graph with labels as further inputs and the loss's two terms as first outputs."""
    model = forward.model.clone()
    graph = model.graph
    outputs = {str(value.name): value for value in graph.outputs}
    specs = loss.labels(outputs)
    values = {}
    for position, spec in enumerate(specs, start=len(forward.inputs)):
        values[spec.name] = ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(spec.dtype))
        graph.inputs.insert(position, values[spec.name])
    terms = loss.emit(Emitter(graph, scope="loss"), outputs, values)
    for value, name in zip(terms, LossTerms._fields, strict=True):
        value.name, value.shape, value.dtype = f"loss_{name}", ir.Shape([]), ir.DataType.FLOAT
    graph.outputs[:0] = terms
    infer_shapes(model)
    return model, terms, specs


def _train_graph(with_loss: ir.Model, forward: Forward) -> tuple[ir.Model, list[str]]:
    """A copy with the gradient of each parameter as a further output named ``<parameter>.grad``, instead of the model's
    outputs.
    """
    model = with_loss.clone()
    graph = model.graph
    loss_sum, loss_weight = graph.outputs[:2]
    targets = [_input(model, name) for name in forward.parameters]
    gradients = differentiate(graph, loss_sum, targets)
    unreached = [str(value.name) for value in targets if value not in gradients]
    if not gradients:
        raise NothingReachesLoss(
            "nothing-reaches-loss",
            "The loss depends on no trainable parameter.",
            context=f"trainable: {', '.join(unreached[:5])}{' …' if len(unreached) > 5 else ''}",
            hint="train parameters that the chosen output depends on, or choose another output for the loss.",
        )
    graph.outputs.clear()
    graph.outputs.extend([loss_sum, loss_weight])
    for target, gradient in gradients.items():
        if gradient in graph.outputs or gradient.producer() is None:
            gradient = Emitter(graph, scope=f"{target.name}/grad").op("Identity", gradient)
        gradient.name = f"{target.name}.grad"
        gradient.shape, gradient.type = target.shape, target.type
        graph.outputs.append(gradient)
    return model, unreached


def _accumulate(train: ir.Model, buckets: Sequence[Bucket]) -> ir.Model:
    """Replace the gradients by accumulators: a flat vector per bucket comes in, and goes out with them added."""
    graph = train.graph
    gradients = {str(value.name): value for value in graph.outputs[2:]}
    del graph.outputs[2:]
    emit = Emitter(graph, scope="accumulate")
    for bucket in buckets:
        shape = ir.Shape([bucket.size])
        accumulator = ir.Value(name=bucket.name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(accumulator)
        total = emit.op("Add", accumulator, flat_gradient(emit, [gradients[f"{name}.grad"] for name in bucket.members]))
        total.name, total.shape, total.dtype = f"{bucket.name}.next", shape, ir.DataType.FLOAT
        graph.outputs.append(total)
    return train


def _freeze(model: ir.Model, values: Mapping[str, NDArray[np.generic]]) -> None:
    """Turn inputs into initializers."""
    for name, array in values.items():
        value = _input(model, name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)


def _sweep(model: ir.Model) -> None:
    """Remove what nobody reads, put the same work done twice together, and give every node a name of its own."""
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.graph.opset_imports.setdefault("", OPSET)
    model.ir_version, model.producer_name = IR_VERSION, "edgepeft"
    common.ClearMetadataAndDocStringPass()(model)


def _input(model: ir.Model, name: str) -> ir.Value:
    return next(value for value in model.graph.inputs if value.name == name)
