"""Counts right answers where the labels are classes."""

from __future__ import annotations

from collections.abc import Mapping

from edgepeft_runtime.bundle.manifest import LabelSpec, Manifest
from edgepeft_runtime.files.tensorfile import Array


def class_label(manifest: Manifest) -> LabelSpec | None:
    """The label that accuracy is about; ``None`` where the loss or the labels are of another kind."""
    if manifest.loss.kind not in ("cross_entropy", "causal_lm"):
        return None
    labels = [label for label in manifest.labels if label.classes is not None]
    return labels[0] if len(labels) == 1 else None


def count_right(outputs: Mapping[str, Array], batch: Mapping[str, Array], manifest: Manifest) -> tuple[int, int] | None:
    """Right answers and answers asked for, by the argmax over the last axis of the first output.

    Ignored labels are left out. For ``causal_lm`` position t answers label t + 1, as in the loss. ``None`` where the
    output's shape does not go with the label's.
    """
    label = class_label(manifest)
    if label is None:
        return None
    scores, wanted = outputs[manifest.outputs[0].name], batch[label.name]
    if manifest.loss.kind == "causal_lm":
        scores, wanted = scores[:, :-1], wanted[:, 1:]
    if scores.shape[:-1] != wanted.shape:
        return None
    counts = wanted != label.ignore_index
    return int(((scores.argmax(axis=-1) == wanted) & counts).sum()), int(counts.sum())
