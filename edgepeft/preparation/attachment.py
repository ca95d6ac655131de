"""A source, pruned and with its method attached, as a forward graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepeft import compress
from edgepeft.methods.base import GraphMethod, Method
from edgepeft.methods.frozen_a import FrozenA
from edgepeft.methods.lora import Lora
from edgepeft.methods.prompts import line_up
from edgepeft.methods.registry import by_name
from edgepeft.methods.support.declaration import declare
from edgepeft.methods.support.existing import attach, check_not_frozen, trains_on
from edgepeft.methods.support.peft_types import check_peft_type
from edgepeft.preparation.peft_format import linear_weights, peft_provenance
from edgepeft.sources.load import Source
from edgepeft.sources.precision import in_single_precision
from edgepeft.sources.working_copy import with_exportable_experts, working_copy
from edgepeft_export.forward import Forward, from_onnx
from edgepeft_export.forward.onnx_source.lora import GraphLora
from edgepeft_export.forward.torch_source.module import DynamicAxes, ExampleInputs, from_torch, name_inputs
from edgepeft_export.quantize.choose import Batch
from edgepeft_runtime.errors import EdgepeftError

Provenance = dict[str, Any]


@dataclass(frozen=True)
class Attachment:
    """What is done to a model before it is a graph; the fields are arguments of :func:`edgepeft.prepare`."""

    method: str | Method | None = None
    prune: compress.Pruning | None = None
    calibration: Sequence[Batch] | None = None
    trainable: Sequence[str] = ()
    dynamic_axes: DynamicAxes | None = None
    outputs: Sequence[str] | None = None
    on_attached: Callable[[nn.Module], None] | None = None
    """Told the module with its method attached, of which further graphs may be made."""

    @property
    def chosen(self) -> Method | None:
        """The method, with its settings."""
        return by_name(self.method) if isinstance(self.method, str) else self.method


def forward_of(source: Source, how: Attachment) -> tuple[Forward, Provenance]:
    """The forward graph of a source, and its part of the provenance; the source's model stays as it was."""
    if isinstance(source.model, Path):
        return _of_file(source, source.model, how)
    return _of_module(source, source.model, how)


def _of_module(source: Source, model: nn.Module, how: Attachment) -> tuple[Forward, Provenance]:
    model, inputs, provenance, masks = attach_to_copy(source, model, how)
    if how.on_attached is not None:
        how.on_attached(model)
    forward = from_torch(model, inputs, dynamic_axes=how.dynamic_axes, outputs=how.outputs)
    forward = declare(forward, model, masks)
    if isinstance(how.chosen, GraphMethod):
        forward = how.chosen.on_graph(forward, model)
    if forward.sparse:
        provenance["linear"] = [
            name for name in linear_weights(model) if name in {part.tensor for part in forward.sparse}
        ]
    return forward, {**provenance, **peft_provenance(model)}


def attach_to_copy(
    source: Source, model: nn.Module, how: Attachment
) -> tuple[nn.Module, Mapping[str, Tensor], Provenance, list[str]]:
    """A copy of the model with its method attached, its example inputs, and what was done.

    Torch's random state stays as it was.
    """
    assert source.example_inputs is not None
    with torch.random.fork_rng(devices=()):
        # Pruning writes into weights.
        model = with_exportable_experts(working_copy(model, share=how.prune is None))
        model, inputs = in_single_precision(model, name_inputs(model, source.example_inputs))
        names, pruned = _pruned(inputs, model, how)
        masked = [model.get_parameter(name) for name in names]
        provenance: Provenance = {"method": "requires_grad"}
        if how.chosen is None:
            check_not_frozen(model)
        elif not trains_on(how.chosen, model, by_name=isinstance(how.method, str)):
            model = attach(how.chosen, model)
            provenance = {"method": how.chosen.name, **_settings(how.chosen)}
        check_peft_type(model)
        compress.hold_masks(model, masked)
        return line_up(model), inputs, {**provenance, **pruned}, names


def _pruned(inputs: Mapping[str, Tensor], model: nn.Module, how: Attachment) -> tuple[list[str], Provenance]:
    """Prune the model; returns the names of the weights whose zeros stay zero, and what was done."""
    if how.prune is None:
        return [], {}
    batches = None
    if how.calibration is not None:
        batches = [{name: torch.as_tensor(array) for name, array in batch.items()} for batch in how.calibration]
    _, report = compress.prune(model, how.prune, batches, example_inputs=dict(inputs))
    return list(report.masked), {"prune": dict(how.prune.as_provenance())}


def _of_file(source: Source, path: Path, how: Attachment) -> tuple[Forward, Provenance]:
    if how.prune is not None:
        raise EdgepeftError(
            "prune-needs-torch",
            "Pruning needs a torch model.",
            context=str(path),
            hint="prune before the model is exported, or prepare the torch model itself.",
        )
    read = partial(from_onnx, path, outputs=how.outputs, example=_arrays(source.example_inputs))
    chosen = how.chosen
    if chosen is None:
        return read(how.trainable), {"method": "onnx", "trainable": list(how.trainable)}
    patterns = tuple(how.trainable)
    if isinstance(chosen, Lora) and type(chosen) in (Lora, FrozenA):  # other variants are not written on a graph
        patterns = (*patterns, *(chosen.modules_to_save or ()))
        whole_head = chosen.modules_to_save is None and not how.trainable
        lora = GraphLora(chosen.rank, chosen.alpha, chosen.target_modules, train_head=whole_head)
        forward = read(patterns, lora)
    elif isinstance(chosen, GraphMethod) and patterns:
        forward = read(patterns)
    else:
        raise EdgepeftError(
            "method-needs-torch",
            f"The method {chosen.name} needs a torch model, or the names of what trains of an .onnx file.",
            context=str(path),
            hint="choose lora, ffa, sift with trainable=, or leave the method out and name the initializers to train.",
        )
    if isinstance(chosen, GraphMethod):
        forward = chosen.on_graph(forward, None)
    return forward, {"method": chosen.name, **_settings(chosen), "trainable": list(patterns)}


def _arrays(example: ExampleInputs | None) -> dict[str, NDArray[np.generic]] | None:
    """Inputs of an ``.onnx`` file, by name."""
    if example is None:
        return None
    if not isinstance(example, Mapping):
        raise EdgepeftError(
            "example-inputs",
            "Example inputs of an .onnx file need names.",
            context=None,
            hint="give a dict {name of the input: array}.",
        )
    return {name: np.asarray(value) for name, value in example.items()}


def _settings(method: Method) -> Mapping[str, Any]:
    values: Provenance = asdict(method)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
