"""Export a source, pruned and with its method attached, as a forward graph that declares the trained parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgepeft import compress
from edgepeft.methods.base import Method
from edgepeft.methods.registry import METHODS, by_name
from edgepeft.methods.support.declaration import declare
from edgepeft.methods.support.existing import attach, check_not_frozen, trains_on
from edgepeft.methods.support.peft.exportable import with_exportable_adapters
from edgepeft.methods.support.peft.types import check_peft_type
from edgepeft.methods.support.prompt_outputs import align_outputs
from edgepeft.preparation.errors import MethodNeedsTorch, PruneNeedsTorch
from edgepeft.preparation.peft_format import linear_weights, peft_provenance
from edgepeft.sources.precision import in_single_precision
from edgepeft.sources.source import Source
from edgepeft.sources.working_copy import with_exportable_experts, working_copy
from edgepeft_export.crossing import has_branches, is_differentiable
from edgepeft_export.errors import BadExampleInputs
from edgepeft_export.forward import Forward, from_onnx
from edgepeft_export.forward.torch_source.export import DynamicAxes, ExampleInputs
from edgepeft_export.forward.torch_source.half import computing, keeps_half, widen_trainable
from edgepeft_export.forward.torch_source.module import from_torch, name_inputs
from edgepeft_export.quantize.choose import Batch
from edgepeft_runtime.files.schema import Json


@dataclass(frozen=True)
class Attachment:
    """How a model is changed before its export. The fields are arguments of ``edgepeft.prepare``."""

    method: str | Method | None = None
    prune: compress.Pruning | None = None
    calibration: Sequence[Batch] | None = None
    trainable: Sequence[str] = ()
    dynamic_axes: DynamicAxes | None = None
    outputs: Sequence[str] | None = None

    @property
    def chosen(self) -> Method | None:
        """The method, with its settings."""
        return by_name(self.method) if isinstance(self.method, str) else self.method


@dataclass(frozen=True)
class AttachedModule:
    """A copy of a torch module in which the parameters of the method train.

    Attributes:
        module: The copy, pruned and with the method attached.
        inputs: Its example inputs, by the argument's name.
        masks: Names of the pruned weights, in the module before the method was attached.
        provenance: Method, settings and pruning, for the manifest.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    masks: Sequence[str]
    provenance: Json


@dataclass(frozen=True)
class AttachedSource:
    """The forward graph of a source.

    Attributes:
        forward: The graph, with its parameters' roles and the layout of the adapter.
        provenance: How the graph was made, for the manifest.
        module: The exported module, from which further graphs can be made; ``None`` for an ``.onnx`` file.
    """

    forward: Forward
    provenance: Json
    module: nn.Module | None = None


def attach_source(source: Source, attachment: Attachment, log: Callable[[str], None]) -> AttachedSource:
    """Export the forward graph of a source with its method attached. The source's own model does not change.

    Args:
        source: The source.
        attachment: How its model is changed.
        log: Called with a message before each slow step.
    """
    if isinstance(source.model, Path):
        log("reading the graph, and comparing it with the file")
        return _of_file(source, source.model, attachment)
    return _of_module(source, source.model, attachment, log)


def _of_module(source: Source, model: nn.Module, attachment: Attachment, log: Callable[[str], None]) -> AttachedSource:
    log("attaching the method")
    attached = attach_to_copy(source, model, attachment)
    module = attached.module
    axes, outputs = attachment.dynamic_axes or source.dynamic_axes, attachment.outputs or source.outputs
    forward = from_torch(module, attached.inputs, dynamic_axes=axes, outputs=outputs, on_progress=log)
    forward = declare(forward, module, attached.masks)
    if attachment.chosen is not None:
        forward = attachment.chosen.on_graph(forward, module)
    provenance = {**attached.provenance, **peft_provenance(module)}
    if forward.sparse:
        changed = {part.tensor for part in forward.sparse}
        provenance["linear"] = [name for name in linear_weights(module) if name in changed]
    return AttachedSource(forward, provenance, module)


def attach_to_copy(source: Source, model: nn.Module, attachment: Attachment) -> AttachedModule:
    """Copy the model, prune the copy, and attach the method to it. Torch's random state does not change."""
    assert source.example_inputs is not None
    with torch.random.fork_rng(devices=()):
        # Pruning writes into weights, so a pruned copy must not share them.
        module = with_exportable_experts(working_copy(model, share=attachment.prune is None))
        module, inputs = in_single_precision(
            module, name_inputs(module, source.example_inputs), whole=attachment.prune is not None
        )
        masks, pruned = _pruned(inputs, module, attachment)
        masked = [module.get_parameter(name) for name in masks]
        half = keeps_half(module)
        with computing(module):
            module, provenance = _with_method(module, attachment)
        if half:
            widen_trainable(module)
        check_peft_type(module)
        module = with_exportable_adapters(module)
        compress.keep_masks(module, masked)
        return AttachedModule(align_outputs(module), inputs, masks, {**provenance, **pruned})


def _with_method(module: nn.Module, attachment: Attachment) -> tuple[nn.Module, Json]:
    """Attach the method, unless the module already has its adapter. Return the module and its provenance."""
    method = attachment.chosen
    if method is None:
        check_not_frozen(module)
    elif not trains_on(method, module, by_name=isinstance(attachment.method, str)):
        return attach(method, module), _settings(method)
    return module, {"method": "requires_grad"}


def _pruned(inputs: Mapping[str, Tensor], module: nn.Module, attachment: Attachment) -> tuple[Sequence[str], Json]:
    """Prune the module in place. Return the names of the weights whose zeros stay zero, and the provenance."""
    if attachment.prune is None:
        return (), {}
    batches = None
    if attachment.calibration is not None:
        batches = [{name: torch.as_tensor(array) for name, array in batch.items()} for batch in attachment.calibration]
    _, report = compress.prune(module, attachment.prune, batches, example_inputs=dict(inputs))
    return report.masked, {"prune": dict(attachment.prune.as_provenance())}


def _of_file(source: Source, path: Path, attachment: Attachment) -> AttachedSource:
    if attachment.prune is not None:
        raise PruneNeedsTorch(
            "Pruning needs a torch model.",
            context=str(path),
            hint="prune the model before its export, or prepare the torch model itself.",
        )
    forward, provenance = _read(path, source, attachment, fix_sizes=False)
    if has_branches(forward) and not is_differentiable(forward):
        other, _ = _read(path, source, attachment, fix_sizes=True)  # sizes may decide the branches
        forward = other if is_differentiable(other) else forward
    return AttachedSource(forward, provenance)


def _read(path: Path, source: Source, attachment: Attachment, *, fix_sizes: bool) -> tuple[Forward, Json]:
    """Read a file with its method attached. Return the graph and its provenance."""
    example = _arrays(source.example_inputs)
    read = partial(from_onnx, path, outputs=attachment.outputs, example=example, fix_sizes=fix_sizes)
    method, trainable = attachment.chosen, list(attachment.trainable)
    if method is None:
        return read(trainable), {"method": "onnx", "trainable": trainable}
    if not method.supports_onnx:
        names = ", ".join(name for name, cls in METHODS.items() if cls.supports_onnx)
        raise MethodNeedsTorch(
            f"The method {method.name} needs a torch model.",
            context=str(path),
            hint=f"choose one of {names}, or omit the method and name the initializers to train.",
        )
    forward = method.on_graph(method.read_onnx(read, trainable), None)
    return forward, {**_settings(method), "trainable": trainable}


def _arrays(example: ExampleInputs | None) -> dict[str, NDArray[np.generic]] | None:
    """Return inputs of an ``.onnx`` file by name, as arrays."""
    if example is None:
        return None
    if not isinstance(example, Mapping):
        raise BadExampleInputs(
            "Example inputs of an .onnx file need names.",
            context=None,
            hint="pass a dict {name of the input: array}.",
        )
    return {name: np.asarray(value) for name, value in example.items()}


def _settings(method: Method) -> Json:
    """Return the method's name and settings."""
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(method).items()}
    return {"method": method.name, **settings}
