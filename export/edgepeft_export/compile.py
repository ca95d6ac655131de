"""Compiles a forward graph, a loss and an optimizer to the graphs that a device runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export import autodiff, memory
from edgepeft_export.autodiff import MissingRule, differentiate
from edgepeft_export.chunks import chunk_losses
from edgepeft_export.errors import DequantizedTensor, NothingReachesLoss, WrongLossInputs
from edgepeft_export.forward import Forward
from edgepeft_export.forward.graph import SparseTensor
from edgepeft_export.forward.identity import base_sha256, of_model
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.edit import bind_inputs, fix_names, input_named
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.losses import Labels, Loss, LossTerms
from edgepeft_export.losses.entropy import write_cross_entropies
from edgepeft_export.opset import IR_VERSION, OPSET, assert_runs_on_devices
from edgepeft_export.optimizer_graph import Bucket, flatten, optimizer_graph, plan_buckets
from edgepeft_export.optimizers import Optimizer
from edgepeft_export.selection import selection_graph
from edgepeft_runtime.bundle.adapter_layout import AdapterLayout
from edgepeft_runtime.bundle.manifest import INDICES

LARGE = 4096
"""Elements. Constants that gradient rules emit are smaller."""


@dataclass(frozen=True)
class Compiled:
    """The graphs of a bundle, and the facts about them for its manifest.

    Attributes:
        graphs: ``train``, ``optimizer``, ``eval``, ``infer``, and perhaps ``select``.
        parameters: initial values of trainable and non-trainable parameters; the trainable ones are in ``buckets``.
        unreached: parameters that should train but that the loss does not depend on; they stay frozen.
        activations: bytes alive in a train step at the moments that may be its peak.
        sparse: tensors of which single elements train; ``select`` exists where the device picks them.
        layout: how the parameters belong together.
        roles: the role of each parameter.
        base_sha256: the identity of the frozen tensors, as the source has them.
    """

    graphs: Mapping[str, ir.Model]
    parameters: Mapping[str, NDArray[np.generic]]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    labels: tuple[Labels, ...]
    buckets: tuple[Bucket, ...]
    unreached: tuple[str, ...]
    activations: tuple[memory.Polynomial, ...]
    sparse: tuple[SparseTensor, ...] = ()
    layout: AdapterLayout = field(default_factory=AdapterLayout)
    roles: Mapping[str, str] = field(default_factory=dict)
    base_sha256: str = ""

    @property
    def trained(self) -> int:
        """Elements that train."""
        return sum(bucket.size for bucket in self.buckets)

    @property
    def adapter(self) -> dict[str, NDArray[np.generic]]:
        """Parameters, and the indices of those that are elements of a tensor."""
        return {**self.parameters, **{part.indices: part.initial_indices for part in self.sparse}}


def compile_step(forward: Forward, loss: Loss, optimizer: Optimizer, recompute: str = "none") -> Compiled:
    """Build the graphs ``train``, ``optimizer``, ``eval``, ``infer``, and perhaps ``select``, of the specification.

    Args:
        forward: has the trainable parameters as inputs.
        loss: attached to its outputs.
        optimizer: updates the trainable parameters.
        recompute: which activations the train step computes twice; see :data:`edgepeft_export.memory.MODES`.

    Raises:
        NoGradientRule: an operator between the loss and a parameter has no gradient rule.
        UnsupportedOperator: a graph contains an operator that devices do not have.
        NothingReachesLoss: the loss depends on no parameter.
        DequantizedTensor: a graph stores a float copy of a quantized tensor.
        LossError: the loss does not fit the model.
    """
    with_loss, _, labels = _attach_loss(forward, loss)
    train, gradients = _differentiated(_training_graph(forward, loss), forward)
    kept = {name: value for name, value in forward.parameters.items() if name in gradients}
    unreached = tuple(name for name in forward.parameters if name not in gradients)
    layout = forward.adapter.restricted_to(kept)
    buckets = plan_buckets({name: value.shape for name, value in kept.items() if name not in layout.non_trainable})
    sparse = tuple(part for part in forward.sparse if part.values in kept)
    to_pick = [part for part in sparse if part.initial_indices[0] < 0]
    graphs = {
        "train": _flat_gradients(train, gradients, buckets),
        "optimizer": optimizer_graph(optimizer, buckets),
        **({"select": selection_graph(with_loss, to_pick)} if to_pick else {}),
        "eval": with_loss,
        "infer": forward.model.clone(),
    }
    names = {*with_loss.graph.initializers, *forward.parameters}
    for name, model in graphs.items():
        lower(model)
        if name != "optimizer":
            bind_inputs(model.graph, forward.fixed(unreached))
        sweep(model)
        if name == "train":
            memory.recompute(model, model.graph.outputs[:2], recompute)
            fix_names(model)
        assert_runs_on_devices(model)
        _assert_quantized(model, names)
    values = tuple(forward.input_values()), tuple(forward.model.graph.outputs)
    peaks = tuple(memory.activation_peaks(graphs["train"]))
    roles = _roles(forward, sparse)
    base = base_sha256(of_model(forward.model) if forward.source is None else forward.source, forward.parameters)
    return Compiled(graphs, kept, *values, tuple(labels), buckets, unreached, peaks, sparse, layout, roles, base)


def _roles(forward: Forward, sparse: Sequence[SparseTensor]) -> dict[str, str]:
    """The role of each parameter of the bundle."""
    declared = {name: forward.roles.get(name, "weight") for name in forward.parameters}
    return declared | {part.indices: INDICES for part in sparse}


def missing_rules(forward: Forward, loss: Loss) -> list[MissingRule]:
    """Every node between the loss and a parameter that has no gradient rule; builds nothing else."""
    model, terms, _ = _attach_loss(forward, loss)
    return autodiff.missing_rules(
        model.graph, terms.sum, [input_named(model.graph, name) for name in forward.parameters]
    )


def _attach_loss(forward: Forward, loss: Loss) -> tuple[ir.Model, LossTerms, Sequence[Labels]]:
    """A copy of the forward graph with labels as further inputs and the loss's two terms as first outputs."""
    model, specs = _attach_nodes(forward, loss)
    write_cross_entropies(model)
    return model, LossTerms(*model.graph.outputs[: len(LossTerms._fields)]), specs


def _training_graph(forward: Forward, loss: Loss) -> ir.Model:
    """The same without the model's own outputs, and with the loss in chunks where its logits would be large."""
    model, _ = _attach_nodes(forward, loss)
    model.graph.outputs[len(LossTerms._fields) :] = []
    return chunk_losses(model, forward.parameters)


def _attach_nodes(forward: Forward, loss: Loss) -> tuple[ir.Model, Sequence[Labels]]:
    """A copy with labels and loss, in which cross-entropies are single nodes."""
    model = forward.model.clone()
    graph = model.graph
    outputs = {str(value.name): value for value in graph.outputs}
    specs = loss.labels(outputs)
    _check_labels([spec.name for spec in specs], {str(value.name) for value in graph.inputs} | set(outputs))
    values = {}
    for position, spec in enumerate(specs, start=len(forward.inputs)):
        values[spec.name] = ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(spec.dtype))
        graph.inputs.insert(position, values[spec.name])
    terms = loss.emit(Emitter(graph, scope="loss"), outputs, values)
    for value, name in zip(terms, LossTerms._fields, strict=True):
        value.name, value.shape, value.dtype = f"loss_{name}", ir.Shape([]), ir.DataType.FLOAT
    graph.outputs[:0] = terms
    infer_shapes(model)
    return model, specs


def _check_labels(labels: Sequence[str], existing: set[str]) -> None:
    for name in labels:
        if name in existing:
            raise WrongLossInputs(
                f"The loss reads {name!r}, and the model has an input, output or parameter of that name.",
                context=None,
                hint="leave labels out of the example inputs: the loss is attached after the model's outputs.",
            )


def _differentiated(model: ir.Model, forward: Forward) -> tuple[ir.Model, dict[str, ir.Value]]:
    """The graph with the backward after it, and the gradient of each parameter that the loss depends on."""
    targets = [input_named(model.graph, name) for name in forward.parameters]
    gradients = differentiate(model.graph, model.graph.outputs[0], targets)
    if not gradients.keys() - {target for target in targets if target.name in forward.adapter.non_trainable}:
        names = list(forward.parameters)
        raise NothingReachesLoss(
            "The loss depends on no trainable parameter.",
            context=f"trainable: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
            hint="train parameters that the chosen output depends on, or choose another output for the loss.",
        )
    return model, {str(target.name): gradient for target, gradient in gradients.items()}


def _flat_gradients(train: ir.Model, gradients: Mapping[str, ir.Value], buckets: Sequence[Bucket]) -> ir.Model:
    """Return the loss and the gradients: flat vectors, one per bucket."""
    graph = train.graph
    del graph.outputs[2:]  # the model's own
    emit = Emitter(graph, scope="gradients")
    for bucket in buckets:
        flat = flatten(emit, [gradients[name] for name in bucket.members])
        flat.name, flat.shape, flat.dtype = bucket.gradient, ir.Shape([bucket.size]), ir.DataType.FLOAT
        graph.outputs.append(flat)
    return train


def sweep(model: ir.Model) -> None:
    """Remove unused nodes, merge equal ones, and name every node uniquely."""
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    fix_names(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.graph.opset_imports.setdefault("", OPSET)
    model.ir_version, model.producer_name = IR_VERSION, "edgepeft"
    common.ClearMetadataAndDocStringPass()(model)


def _assert_quantized(model: ir.Model, known: Collection[str]) -> None:
    """Check that a graph stores no large float tensors other than those of the model and its loss."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > LARGE and name not in known:
            raise DequantizedTensor(
                f"The graph would store {name}, {tensor.size:,} float elements, besides the quantized base.",
                context=f"read by {', '.join(str(use.node.name) for use in value.uses())}",
                hint="this is a defect of a gradient rule: please report the model's operators.",
            )
