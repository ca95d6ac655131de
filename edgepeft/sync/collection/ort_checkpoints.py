"""Convert checkpoints of ONNX Runtime Training to updates."""

from __future__ import annotations

from pathlib import Path

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine.ort_training_checkpoint import OrtCheckpoint, read_checkpoint
from edgepeft_runtime.errors import UpdateError
from edgepeft_runtime.train.update import Update

NAMES = ("checkpoint", "*.ckpt")
"""Patterns of the names of such files; the format has no suffix of its own."""


def update_of_checkpoint(path: Path, bundle: Bundle | None) -> Update:
    """Return the update that a checkpoint contains.

    Args:
        path: Written by ``CheckpointState.save_checkpoint`` on any device; it carries the hashes of base and adapter
            that ``edgepeft export-ort-training`` put into it.
        bundle: The bundle that it was trained from, for the provenance.

    Raises:
        UpdateError: It is damaged, does not say what it was trained from, or has no values.
    """
    checkpoint = read_checkpoint(path)
    if bundle is None:
        raise _refused(
            "checkpoint-without-bundle",
            "A checkpoint of ONNX Runtime Training is only known together with its bundle.",
            "it carries no provenance",
            "name the bundle it was trained from (--bundle).",
        )
    if checkpoint.nominal:
        raise _refused("nominal-checkpoint", "The checkpoint holds names and no values.", str(path), "send the other.")
    return Update(
        parameters=dict(checkpoint.parameters),
        base_sha256=_identity(checkpoint, "base_sha256"),
        adapter_sha256=_identity(checkpoint, "adapter_sha256"),
        provenance=bundle.manifest.provenance,
        steps=checkpoint.steps or 0,
        runtime="onnxruntime-training",
    )


def _identity(checkpoint: OrtCheckpoint, name: str) -> str:
    if name not in checkpoint.properties:
        raise _refused(
            "foreign-checkpoint",
            "The checkpoint does not say what it was trained from.",
            f"it has no property {name}",
            "train from the files that `edgepeft export-ort-training` wrote, and keep the checkpoint's properties.",
        )
    return checkpoint.properties[name]


def _refused(reference: str, message: str, context: str, hint: str) -> UpdateError:
    return UpdateError(reference, message, context=context, hint=hint)
