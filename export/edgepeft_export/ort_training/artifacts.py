"""Writes the official artifacts of a bundle into its folder ``ort_training/`` and lists them in the manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from edgepeft_export.errors import (
    GraphTooLarge,
    NoSparseParameters,
    UnknownGradient,
    UntrainedParameters,
)
from edgepeft_export.ort_training.graphs import eval_model, training_model
from edgepeft_export.ort_training.official import write_official
from edgepeft_export.ort_training.optimizer import optimizer_model
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.folder import listed_files
from edgepeft_runtime.bundle.manifest import MANIFEST, Manifest
from edgepeft_runtime.engine.ort_training.checkpoint import OrtCheckpoint, write_checkpoint
from edgepeft_runtime.engine.ort_training.engine import FOLDER
from edgepeft_runtime.files.staging import revised_directory
from edgepeft_runtime.names import did_you_mean

GRADIENTS = ("own", "official")
LARGEST = 2**31 - 2**20
"""Largest size in bytes of a protobuf graph with its weights."""


@dataclass(frozen=True)
class OrtTraining:
    """Settings of the official artifacts.

    Attributes:
        gradient: ``own``: the bundle's train graph; ``official``: the gradient that ONNX Runtime's own tool builds.
        training_python: for ``official``, the interpreter of an environment with ``edgepeft[ort-training]``.
    """

    gradient: str = "own"
    training_python: str | Path | None = None

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise UnknownGradient(
                f"There is no gradient named {self.gradient!r}.",
                context=f"there are: {', '.join(GRADIENTS)}",
                hint=did_you_mean(self.gradient, GRADIENTS),
            )


def export_ort_training(bundle: str | Path | Bundle, settings: OrtTraining | None = None) -> Path:
    """Add the artifacts that ``onnxruntime.training.api`` 1.19.2, and its builds for phones, train.

    ``training_model.onnx``, ``eval_model.onnx``, ``optimizer_model.onnx``, ``checkpoint`` (or ``nominal_checkpoint``)
    are all that an application needs. The frozen tensors are in the graphs, quantized as in the bundle, so that the
    checkpoint contains the adapter alone. User inputs are the bundle's inputs and labels, in the manifest's order; the
    first output of both models is the mean loss. Weight decay applies to all parameters or to none.

    Args:
        bundle: an existing bundle. Its folder ``ort_training`` is replaced.
        settings: by default with the gradient of the bundle's train graph.

    Returns:
        The folder.

    Raises:
        OrtTrainingError: the bundle trains in a way that ONNX Runtime Training cannot.
        BundleError: the bundle is damaged, or cannot be replaced by one with the artifacts.
    """
    settings = settings or OrtTraining()
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    _refuse(bundle.manifest)
    kept = [name for name in bundle.manifest.files if not name.startswith(f"{FOLDER}/")]
    with revised_directory(bundle.path, kept) as staging:
        folder = staging / FOLDER
        folder.mkdir()
        onnx.save(optimizer_model(bundle.manifest), folder / "optimizer_model.onnx")
        _write_checkpoints(bundle, folder)
        if settings.gradient == "own":
            _write_own(bundle, folder)
        else:
            write_official(bundle, folder, settings.training_python)
        artifacts = {f"{FOLDER}/{name}": entry for name, entry in listed_files(folder).items()}
        files = {name: bundle.manifest.files[name] for name in kept} | artifacts
        manifest = replace(bundle.manifest, files=files)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return bundle.path / FOLDER


def _write_own(bundle: Bundle, folder: Path) -> None:
    for name, model in (("training_model", training_model(bundle)), ("eval_model", eval_model(bundle))):
        _check_size(model)
        ir.save(model, folder / f"{name}.onnx")


def _check_size(model: ir.Model) -> None:
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size > LARGEST:
        raise GraphTooLarge(
            "The frozen tensors do not fit into one graph.",
            context=f"{size:,} bytes; the limit of such a file is 2 GB",
            hint="quantize the base (--compute int8 or int4), or train with the portable engine.",
        )


def _write_checkpoints(bundle: Bundle, folder: Path) -> None:
    identity = {"base_sha256": bundle.base_sha256, "adapter_sha256": bundle.adapter_sha256}
    for name, nominal in (("checkpoint", False), ("nominal_checkpoint", True)):
        write_checkpoint(folder / name, OrtCheckpoint(bundle.adapter(), identity, nominal))


def _refuse(manifest: Manifest) -> None:
    if manifest.sparse:
        raise NoSparseParameters(
            "ONNX Runtime Training trains whole tensors, and this bundle single elements of them.",
            context=f"{len(manifest.sparse)} sparse tensors, such as {manifest.sparse[0].tensor}",
            hint="train it with the portable engine, or prepare another method.",
        )
    if manifest.adapter.non_trainable:
        raise UntrainedParameters(
            "ONNX Runtime Training changes all parameters of a checkpoint, and in this bundle some do not train.",
            context=f"{len(manifest.adapter.non_trainable)} parameters, such as {manifest.adapter.non_trainable[0]}",
            hint="train it with the portable engine, or prepare another method.",
        )
