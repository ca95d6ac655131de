"""Converts an ``.onnx`` file to a forward graph, whose caller names the initializers that train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.errors import UnknownInitializer
from edgepeft_export.forward.graph import Forward
from edgepeft_export.forward.identity import of_model
from edgepeft_export.forward.onnx_source.declared_shapes import (
    fits,
    fix_batch_of_states,
    fix_free_axes,
    name_free_axes,
    settle_shapes,
)
from edgepeft_export.forward.onnx_source.fused import raise_fused
from edgepeft_export.forward.onnx_source.kinds import of_kinds
from edgepeft_export.forward.onnx_source.lora import GraphLora, attach_lora
from edgepeft_export.forward.onnx_source.operators import refuse_texts, refuse_unknown, refuse_without_weights
from edgepeft_export.forward.onnx_source.opsets import at_opset, inlined
from edgepeft_export.forward.onnx_source.outputs import choose_outputs, floats_first, keep_tensors
from edgepeft_export.forward.onnx_source.quantized import raise_quantized
from edgepeft_export.forward.onnx_source.reference import FileReference, in_types_of, verified
from edgepeft_export.graph.constants import initializer_array
from edgepeft_export.graph.edit import bind_inputs
from edgepeft_export.graph.expanding.settling import settle
from edgepeft_export.graph.modelfile import load_model
from edgepeft_export.graph.nested.hoisting import hoist_constants, hoist_unchanged
from edgepeft_export.graph.nested.iterations import limit_loops
from edgepeft_export.graph.nested.sequences import resolve_sequences
from edgepeft_export.graph.shapes import infer_shapes, is_float
from edgepeft_export.opset import IR_VERSION
from edgepeft_export.passes.pipeline import tidy, widen
from edgepeft_export.verification.invent import run_twice
from edgepeft_runtime.bundle.adapter_layout import AdapterLayout
from edgepeft_runtime.names import did_you_mean


def from_onnx(
    path: str | Path,
    trainable: Sequence[str] = (),
    lora: GraphLora | None = None,
    *,
    kinds: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    example: Mapping[str, NDArray[np.generic]] | None = None,
    fix_sizes: bool = False,
) -> Forward:
    """Read a model file, which may be quantized; lift initializers to trainable inputs, and attach LoRA.

    Quantized tensors of the file are kept bit for bit; see ``edgepeft_export.forward.onnx_source.quantized``.

    Args:
        path: a model of opset 13 or later; external data next to it is read too.
        trainable: names of initializers, or patterns with ``*`` and ``?``, each of which must match.
        lora: pairs of matrices to attach; then ``trainable`` may be empty.
        kinds: kinds of tensors that train as well; see ``edgepeft_export.forward.onnx_source.kinds``.
        outputs: names of tensors of the file that become outputs before its own ones, the one for the loss first.
        example: inputs that the file runs on. Without them, some are generated.
        fix_sizes: whether axes after the first have the sizes of the example, so that branches on sizes are decided.

    Raises:
        ForwardError: the file is no model, a pattern matches no float32 initializer, no linear layer can have a pair,
            or an output does not exist.
        VerificationError: the outputs of the graph differ from those of the file.
    """
    read = _read(Path(path), outputs)
    reference = FileReference(read.model, run_twice(read.model, example), notes=read.notes)  # at two sizes, if it can
    model = _load(Path(path), outputs)
    refuse_without_weights(model, Path(path))
    if fix_sizes:
        reference = _with_fixed_sizes(model, reference)
    infer_shapes(model)
    if outputs is None and (first := floats_first(model.graph)):
        reference = replace(reference, notes=(*reference.notes, first))
    if states := fix_batch_of_states(model.graph):
        note = f"the bundle is for {', '.join(states)}"
        reference = replace(reference, notes=(*reference.notes, note))
    reference = replace(reference, half=widen(model))
    settle_shapes(model, [in_types_of(model.graph.inputs, feeds) for feeds, _ in reference.runs.pairs])
    limit_loops(model)
    if fix_sizes:
        settle(model.graph)
    raise_quantized(model)
    by_kind = of_kinds(model, kinds)
    chosen = _match(model.graph, trainable) if trainable or (lora is None and not kinds) else []
    chosen = list(dict.fromkeys([*chosen, *(value for values in by_kind.values() for value in values)]))
    parameters: dict[str, NDArray[np.generic]] = {}
    adapter, roles = AdapterLayout(), {str(value.name): _role(value) for value in chosen}
    roles |= {str(value.name): kind for kind, values in by_kind.items() for value in values}
    initializers = set(model.graph.initializers)
    inputs = tuple(str(value.name) for value in model.graph.inputs if value.name not in initializers)
    for value in list(model.graph.inputs):
        if value.name in initializers:
            model.graph.inputs.remove(value)
    if lora is not None:
        attached = attach_lora(model, lora, {str(value.name) for value in chosen})
        parameters.update(attached.parameters)
        adapter = AdapterLayout(attached.pairs)
        roles |= dict.fromkeys(attached.head, "head")
        for pair in attached.pairs:
            roles |= {pair.a: "lora_A", pair.b: "lora_B"}
        chosen += [value for name in attached.head if (value := model.graph.initializers[name]) not in chosen]
    for value in chosen:
        parameters[str(value.name)] = initializer_array(value).copy()
        del model.graph.initializers[str(value.name)]
        value.const_value = None
        model.graph.inputs.append(value)
    forward = Forward(
        tidy(model), inputs, parameters, adapter=adapter, roles=roles, source=of_model(load_model(path)),
        source_outputs=read.own,
    )  # fmt: skip
    return verified(forward, reference)


def _with_fixed_sizes(model: ir.Model, reference: FileReference) -> FileReference:
    """Give the model's inputs the sizes of the first run, and numbers their values; return the runs with these.

    A number, such as a sampling rate, is no input any more.
    """
    if not reference.runs.pairs:
        return reference
    first, _ = reference.runs.pairs[0]
    names = fix_free_axes(model.graph, first)
    numbers = {
        str(value.name): first[str(value.name)]
        for value in model.graph.inputs
        if value.shape is not None and not len(value.shape) and str(value.name) in first and not is_float(value)
    }
    bind_inputs(model.graph, numbers)
    pairs = tuple(
        ({name: array for name, array in feeds.items() if name not in numbers}, outputs)
        for feeds, outputs in reference.runs.pairs
        if fits(model.graph, feeds) and all(np.array_equal(feeds[name], array) for name, array in numbers.items())
    )
    fixed = ", ".join([*names, *(f"{name} = {array}" for name, array in numbers.items())])
    note = f"branches of the file depend on sizes and numbers: the bundle is for {fixed}; example inputs set others"
    return replace(reference, runs=replace(reference.runs, pairs=pairs), notes=(note,))


def _role(value: ir.Value) -> str:
    """The role of an initializer, by the operators that read it: scales and shifts of a norm, a bias or a weight."""
    if any("Normalization" in use.node.op_type for use in value.uses()):
        return "norm"
    return "bias" if value.shape is not None and len(value.shape) == 1 else "weight"


@dataclass(frozen=True)
class _Read:
    """A file as read, with the outputs of the graph that is made from it.

    Attributes:
        model: the file.
        own: names of its outputs that the graph has, in its order.
        notes: facts about its outputs for the user.
    """

    model: ir.Model
    own: tuple[str, ...]
    notes: tuple[str, ...]


def _read(path: Path, outputs: Sequence[str] | None) -> _Read:
    model = load_model(path)
    name_free_axes(model.graph)
    notes = keep_tensors(model)
    own = [str(value.name) for value in model.graph.outputs]
    if outputs is not None:
        infer_shapes(model)
        notes += choose_outputs(model, outputs)
    common.RemoveUnusedNodesPass()(model)
    refuse_unknown(model, path)
    refuse_texts(model.graph, path)
    kept = {value.name for value in model.graph.outputs}
    return _Read(model, tuple(name for name in own if name in kept), notes)


def _load(path: Path, outputs: Sequence[str] | None) -> ir.Model:
    model = _read(path, outputs).model
    model = inlined(model, path)
    model = at_opset(model, path)
    common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    hoist_constants(model)
    hoist_unchanged(model)
    infer_shapes(model)
    if resolve_sequences(model):
        common.RemoveUnusedNodesPass()(model)
    raise_fused(model)
    model.ir_version = IR_VERSION
    return model


def _match(graph: ir.Graph, patterns: Sequence[str]) -> list[ir.Value]:
    floats = {str(v.name): v for v in graph.initializers.values() if v.dtype == ir.DataType.FLOAT}
    missing = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in floats)]
    if missing or not patterns:
        raise UnknownInitializer(
            f"No float32 initializer matches {', '.join(map(repr, missing))}."
            if missing
            else "Nothing is named that trains: an .onnx file does not mark its parameters.",
            context=f"there are: {', '.join(sorted(floats)[:20])}{' …' if len(floats) > 20 else ''}",
            hint=did_you_mean(
                (missing or [""])[0],
                floats,
                "name the initializers to train, or a pattern such as 'classifier.*' (trainable=, --train), or choose "
                "a method that adds parameters, such as lora (method=, --method).",
            ),
        )
    return [value for name, value in floats.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
