"""Convert checkpoints of ONNX Runtime Training to updates."""

from __future__ import annotations

from pathlib import Path

from edgepeft.sync.errors import CheckpointWithoutBundle, ForeignCheckpoint, NominalCheckpoint
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine.ort_training.checkpoint import OrtCheckpoint, read_checkpoint
from edgepeft_runtime.train.update import Update

NAMES = ("checkpoint", "*.ckpt")
"""Patterns of the names of such files; the format has no suffix of its own."""


def update_of_checkpoint(path: Path, bundle: Bundle | None) -> Update:
    """Return the update that a checkpoint contains.

    Args:
        path: File that ``CheckpointState.save_checkpoint`` has written on any device. It contains the hashes of base
            and adapter that ``edgepeft export-ort-training`` has put into it.
        bundle: The bundle that it was trained from, for the provenance.

    Raises:
        UpdateError: It is damaged, does not name its base and adapter, or has no values.
    """
    checkpoint = read_checkpoint(path)
    if bundle is None:
        raise CheckpointWithoutBundle(
            "A checkpoint of ONNX Runtime Training can only be read together with its bundle.",
            context="it has no provenance",
            hint="name the bundle it was trained from (--bundle).",
        )
    if checkpoint.nominal:
        message = "The checkpoint has names and no values."
        raise NominalCheckpoint(message, context=str(path), hint="send the one with values.")
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
        raise ForeignCheckpoint(
            "The checkpoint does not name its base and adapter.",
            context=f"it has no property {name}",
            hint="train from the files of `edgepeft export-ort-training`, and keep the properties of the checkpoint.",
        )
    return checkpoint.properties[name]
