"""Compiles a forward graph, a loss and an optimizer to the graphs that a device runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export import autodiff, memory
from edgepeft_export.autodiff import MissingRule, differentiate
from edgepeft_export.autodiff.pairs import join_pairs
from edgepeft_export.chunks import LONG, ChunkSizes, attend_by_head, checked_chunks, chunk_losses
from edgepeft_export.errors import NothingReachesLoss, WrongLossInputs
from edgepeft_export.finish import finish
from edgepeft_export.forward import Forward
from edgepeft_export.forward.graph import SparseTensor, freeze
from edgepeft_export.forward.identity import base_sha256, of_model
from edgepeft_export.graph.constants import initializer_tensor
from edgepeft_export.graph.edit import bind_inputs, input_named
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.expansion import is_expanded
from edgepeft_export.graph.kernels import dequantize_once
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.losses import Labels, Loss, LossTerms
from edgepeft_export.losses.entropy import write_cross_entropies
from edgepeft_export.optimizer_graph import Bucket, by_shape, flatten, optimizer_graph, plan_buckets
from edgepeft_export.optimizers import Optimizer
from edgepeft_export.passes import fold_norms
from edgepeft_export.passes.pipeline import tune
from edgepeft_export.program import Segmented, as_inputs, checked_weights, segmented
from edgepeft_export.program.reads import ancestors
from edgepeft_export.selection import selection_graph
from edgepeft_runtime.bundle.adapter_layout import AdapterLayout
from edgepeft_runtime.bundle.programs import Accumulation, Call
from edgepeft_runtime.bundle.specs import INDICES
from edgepeft_runtime.notices import notice

MANY_BYTES = 100_000_000
"""Frozen weights of more bytes are inputs of segments: in memory each would exist up to three times as a constant."""


@dataclass(frozen=True)
class Compiled:
    """The graphs of a bundle, and the facts about them for its manifest.

    Attributes:
        graphs: by the name of their file, without its extension.
        programs: the calls of ``train``, ``eval``, ``infer``, and perhaps ``select``.
        parameters: initial values of trainable and non-trainable parameters; the trainable ones are in ``buckets``.
        unreached: parameters that should train but that the loss does not depend on; they stay frozen.
        activations: bytes alive in a train step at the moments that may be its peak.
        sparse: tensors of which single elements train; ``select`` exists where the device picks them.
        layout: how the parameters belong together.
        roles: the role of each parameter.
        base_sha256: the identity of the frozen tensors, as the source has them.
        segments: where calls run segments of the model and bind their weights.
    """

    graphs: Mapping[str, ir.Model]
    programs: Mapping[str, tuple[Call, ...]]
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
    segments: Segmented | None = None

    @property
    def cache(self) -> str | None:
        """The one value below which nothing trains, if there is one."""
        start = None if self.segments is None else self.segments.plan.start
        return None if start is None else start.name

    @property
    def bound(self) -> Mapping[str, ir.TensorProtocol]:
        """The frozen tensors that calls bind to inputs of graphs, by name."""
        return {} if self.segments is None else self.segments.library.frozen

    @property
    def trained(self) -> int:
        """Elements that train."""
        return sum(bucket.size for bucket in self.buckets)

    @property
    def adapter(self) -> dict[str, NDArray[np.generic]]:
        """Parameters, and the indices of those that are elements of a tensor."""
        return {**self.parameters, **{part.indices: part.initial_indices for part in self.sparse}}


@dataclass(frozen=True)
class _Attached:
    """A forward graph with its loss.

    Attributes:
        model: has labels as further inputs, and the two terms of the loss as first outputs.
        terms: of the loss.
        labels: their description.
    """

    model: ir.Model
    terms: LossTerms
    labels: tuple[Labels, ...]


def compile_step(
    forward: Forward, loss: Loss, optimizer: Optimizer, weights: str | None = None, chunks: str = "normal"
) -> Compiled:
    """Build the graphs and programs of the specification.

    Args:
        forward: has the trainable parameters as inputs.
        loss: attached to its outputs.
        optimizer: updates the trainable parameters.
        weights: how graphs read frozen weights; see ``edgepeft_export.program.structure.WEIGHTS``. By default by
            their size.
        chunks: how much of the largest tensors exists at once; see ``edgepeft_export.chunks.CHUNKS``.

    Raises:
        NoGradientRule: an operator between the loss and a parameter has no gradient rule.
        UnsupportedOperator: a graph contains an operator that devices do not have.
        NothingReachesLoss: the loss depends on no parameter.
        DequantizedTensor: a graph stores a float copy of a quantized tensor.
        LossError: the loss does not fit the model.
    """
    sizes = checked_chunks(chunks)
    if checked_weights(weights or chosen_weights(forward)) == "input":
        compiled = _in_segments(forward, loss, optimizer, sizes)
        if compiled is not None:
            return compiled
        notice("The model's graph cannot be cut into segments: its weights stay constants of one graph.")
    return _whole(forward, loss, optimizer, sizes)


def chosen_weights(forward: Forward) -> str:
    """Inputs where the weights that can be inputs have more than ``MANY_BYTES``, and more than the others.

    4-bit weights count as the int8 ones that a whole graph expands, most of which live until the backward pass.
    """
    initializers = [value for value in forward.model.graph.initializers.values() if value.const_value is not None]
    sizes = {value: initializer_tensor(value).nbytes * (2 if is_expanded(value) else 1) for value in initializers}
    bindable = sum(size for value, size in sizes.items() if as_inputs(value))
    return "input" if bindable > max(MANY_BYTES, sum(sizes.values()) - bindable) else "constant"


def _whole(forward: Forward, loss: Loss, optimizer: Optimizer, sizes: ChunkSizes) -> Compiled:
    """Programs of one call each."""
    attached = _attach_loss(forward, loss)
    is_long = forward.longest is not None and forward.longest > LONG
    train, gradients = _differentiated(_training_graph(forward, loss, sizes, by_head=is_long), forward)
    unreached = tuple(name for name in forward.parameters if name not in gradients)
    reached = by_shape({name: forward.parameters[name].shape for name in gradients})
    compiled = _compiled(forward, attached, unreached, list(reached), optimizer)
    graphs = {
        "train": _flat_gradients(train, gradients, compiled.buckets),
        **compiled.graphs,
        "eval": attached.model,
        "infer": forward.model.clone(),
    }
    tune(graphs["train"])
    dequantize_once(graphs["eval"].graph)  # merging reads the matrices of the graph for predictions as they are stored
    known = {*attached.model.graph.initializers, *forward.parameters}
    for name in ("train", "eval", "infer"):
        bind_inputs(graphs[name].graph, forward.fixed(unreached))
        finish(graphs[name], known)
    added = tuple(Accumulation(bucket.gradient, bucket.name) for bucket in compiled.buckets)
    calls = {
        "train": (Call("train.onnx", accumulate=added),),
        **compiled.programs,
        **{name: (Call(f"{name}.onnx"),) for name in ("eval", "infer")},
    }
    peaks = tuple(memory.activation_peaks(graphs["train"]))
    return replace(compiled, graphs=graphs, programs=calls, activations=peaks)


def _in_segments(forward: Forward, loss: Loss, optimizer: Optimizer, sizes: ChunkSizes) -> Compiled | None:
    """Programs of segments; ``None`` where the graph has no cuts."""
    attached = _attach_loss(forward, loss)
    known = {*attached.model.graph.initializers, *forward.parameters}
    inputs = [*forward.parameters, *(part.indices for part in forward.sparse)]
    trainable = [name for name in forward.parameters if name not in forward.adapter.non_trainable]
    may_be_long = forward.longest is None or forward.longest > LONG
    models = _training_graph(forward, loss, sizes, by_head=may_be_long), attached.model, forward.model
    found = segmented(models, inputs, trainable, as_inputs, partial(finish, known=known), sizes.rows)
    if found is None:
        return None
    read = {value.name for value in ancestors(attached.model.graph, attached.model.graph.outputs[:1])}
    reached = {*found.plan.reached, *(name for name in forward.adapter.non_trainable if name in read)}
    unreached = tuple(name for name in forward.parameters if name not in reached)
    if unreached:
        frozen = _in_segments(freeze(forward, unreached), loss, optimizer, sizes)
        return None if frozen is None else replace(frozen, unreached=unreached)
    compiled = _compiled(forward, attached, (), found.plan.reached, optimizer)
    programs = {"train": found.train(compiled.buckets), **compiled.programs, "eval": found.eval, "infer": found.infer}
    return replace(
        compiled,
        graphs={**found.library.graphs, **compiled.graphs},
        programs=programs,
        segments=found,
        activations=tuple(found.activation_peaks(programs["train"])),
    )


def _compiled(
    forward: Forward, attached: _Attached, unreached: Sequence[str], order: Sequence[str], optimizer: Optimizer
) -> Compiled:
    """Everything that does not depend on how a step is divided into calls.

    Args:
        forward: the graph.
        attached: the graph with its loss.
        unreached: parameters that the loss does not depend on.
        order: the order of the parameters in the buckets.
        optimizer: updates the parameters.
    """
    kept = {name: value for name, value in forward.parameters.items() if name not in unreached}
    layout = forward.adapter.restricted_to(kept)
    trained = [name for name in order if name in kept and name not in layout.non_trainable]
    if not trained:
        raise _nothing_reaches_loss(forward)
    buckets = plan_buckets({name: kept[name].shape for name in trained})
    sparse = tuple(part for part in forward.sparse if part.values in kept)
    graphs = {"optimizer": optimizer_graph(optimizer, buckets)}
    to_pick = [part for part in sparse if part.initial_indices[0] < 0]
    if to_pick:
        graphs["select"] = selection_graph(attached.model, to_pick)
        bind_inputs(graphs["select"].graph, forward.fixed(unreached))
    for model in graphs.values():
        finish(model, {*attached.model.graph.initializers, *forward.parameters})
    return Compiled(
        graphs,
        {"select": (Call("select.onnx"),)} if to_pick else dict[str, tuple[Call, ...]](),
        kept,
        tuple(forward.input_values()),
        tuple(forward.model.graph.outputs),
        attached.labels,
        buckets,
        tuple(unreached),
        (),
        sparse,
        layout,
        _roles(forward, sparse),
        base_sha256(of_model(forward.model) if forward.source is None else forward.source, forward.parameters),
    )


def _roles(forward: Forward, sparse: Sequence[SparseTensor]) -> dict[str, str]:
    """The role of each parameter of the bundle."""
    declared = {name: forward.roles.get(name, "weight") for name in forward.parameters}
    return declared | {part.indices: INDICES for part in sparse}


def missing_rules(forward: Forward, loss: Loss) -> list[MissingRule]:
    """Every node between the loss and a parameter that has no gradient rule; builds nothing else."""
    attached = _attach_loss(forward, loss)
    graph = attached.model.graph
    return autodiff.missing_rules(graph, attached.terms.sum, [input_named(graph, name) for name in forward.parameters])


def _attach_loss(forward: Forward, loss: Loss) -> _Attached:
    """A copy of the forward graph with labels as further inputs and the loss's two terms as first outputs."""
    model, specs = _attach_nodes(forward, loss)
    write_cross_entropies(model)
    return _Attached(model, LossTerms(*model.graph.outputs[: len(LossTerms._fields)]), tuple(specs))


def _training_graph(forward: Forward, loss: Loss, sizes: ChunkSizes, *, by_head: bool) -> ir.Model:
    """The same without the model's own outputs, and without passes of frozen normalizations.

    Where they would be large, logits are computed in chunks.

    Args:
        forward: the graph.
        loss: attached to it.
        sizes: of chunks.
        by_head: whether attention runs for a few heads at a time.
    """
    model, _ = _attach_nodes(forward, loss)
    model.graph.outputs[len(LossTerms._fields) :] = []
    fold_norms(model)
    join_pairs(model, forward.parameters)
    chunk_losses(model, forward.parameters, sizes)
    if by_head:
        attend_by_head(model, forward.parameters, sizes)
    return model


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
    return model, {str(target.name): gradient for target, gradient in gradients.items()}


def _nothing_reaches_loss(forward: Forward) -> NothingReachesLoss:
    names = list(forward.parameters)
    return NothingReachesLoss(
        "The loss depends on no trainable parameter.",
        context=f"trainable: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",
        hint="train parameters that the chosen output depends on, or choose another output for the loss.",
    )


def _flat_gradients(train: ir.Model, gradients: Mapping[str, ir.Value], buckets: Sequence[Bucket]) -> ir.Model:
    """Return the loss and the gradients: flat vectors, one per bucket."""
    graph = train.graph
    del graph.outputs[2:]  # the model's own
    emit = Emitter(graph, scope="gradients")
    for bucket in buckets:
        flat = flatten(emit, [gradients[name] for name in bucket.members], bucket.shapes)
        flat.name, flat.shape, flat.dtype = bucket.gradient, ir.Shape([bucket.size]), ir.DataType.FLOAT
        graph.outputs.append(flat)
    return train
