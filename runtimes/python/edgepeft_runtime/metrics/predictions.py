"""Scores and labels of a batch as metrics read them: aligned, without ignored labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec
from edgepeft_runtime.errors import WrongMetric
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.base import Arrays

CLASSES = ("cross_entropy", "causal_lm", "focal", "weighted_sum")
BINARY = ("bce_with_logits", "binary_focal")
NUMBERS = ("mse", "l1", "huber", "smooth_l1")
"""Kinds of losses whose labels are classes, answers to yes-or-no questions, and numbers."""


class Aligned(NamedTuple):
    """The scores of the model, and the labels.

    Attributes:
        scores: float ``[n, classes]``.
        labels: int64 ``[n]``: the class of each row.
    """

    scores: Array
    labels: NDArray[np.int64]


def class_label(manifest: Manifest) -> LabelSpec | None:
    """Return the label of classes; ``None`` where the loss is not one of classes."""
    if manifest.loss.kind not in CLASSES:
        return None
    labels = [label for label in manifest.labels if label.classes is not None]
    return labels[0] if len(labels) == 1 else None


def transcripts(outputs: Arrays, batch: Arrays, manifest: Manifest) -> list[tuple[Array, Array]]:
    """Return the predicted and the true classes of each sequence of a bundle with CTC loss.

    The class of each frame is the one with the highest score; repetitions and blanks are then left out.
    """
    settings, scores = manifest.loss.settings, outputs[manifest.outputs[0].name]
    best = scores.argmax(axis=-1)
    best = best if settings.get("time_axis", 1) == 1 else best.T
    blank = settings["blank"] % scores.shape[-1]
    name = settings.get("frames")
    frames = np.full(len(best), best.shape[1]) if name is None else {**batch, **outputs}[name]
    pairs = []
    for row, length, label in zip(best, frames, batch[manifest.labels[0].name], strict=True):
        row = row[: int(length)]
        changes = np.diff(row, prepend=-1) != 0
        pairs.append((row[changes & (row != blank)], label[(label >= 0) & (label != blank)]))
    return pairs


def aligned(outputs: Arrays, batch: Arrays, manifest: Manifest) -> Aligned | None:
    """Return scores and labels of classes; ``None`` where they do not have the shapes of a classification.

    For ``causal_lm`` position t predicts label t + 1, as in the loss.
    """
    label = class_label(manifest)
    if label is None:
        return None
    scores, labels = in_order(outputs, batch, manifest, label)
    if scores.shape[:-1] != labels.shape:
        return None
    counted = labels != label.ignore_index
    return Aligned(scores[counted], labels[counted].astype(np.int64))


def in_order(outputs: Arrays, batch: Arrays, manifest: Manifest, label: LabelSpec) -> tuple[Array, Array]:
    """Return the first output and a label, shifted against each other for ``causal_lm``."""
    scores, labels = outputs[manifest.outputs[0].name], batch[label.name]
    return (scores[:, :-1], labels[:, 1:]) if manifest.loss.kind == "causal_lm" else (scores, labels)


def binary(outputs: Arrays, batch: Arrays, manifest: Manifest) -> tuple[Array, NDArray[np.bool_]]:
    """Return logits and labels of yes-or-no questions, ``[n, questions]`` each. A label above 0.5 means yes."""
    scores, labels = outputs[manifest.outputs[0].name], batch[manifest.labels[0].name]
    scores, labels = scores.reshape(len(scores), -1), labels.reshape(len(labels), -1)
    return scores, labels > 0.5


def numbers(outputs: Arrays, batch: Arrays, manifest: Manifest) -> tuple[Array, Array]:
    """Return predicted and true numbers, float64 ``[n, numbers]`` each."""
    predicted, true = outputs[manifest.outputs[0].name], batch[manifest.labels[0].name]
    return (array.astype(np.float64).reshape(len(array), -1) for array in (predicted, true))  # type: ignore[return-value]


def questions(manifest: Manifest, count: int) -> list[str]:
    """Return a name for each class or question: those of the manifest, or their numbers."""
    names = manifest.classes or ()
    return list(names) if len(names) == count else [str(index) for index in range(count)]


def require_kind(metric: str, manifest: Manifest, *kinds: str) -> None:
    """Refuse a metric whose labels the bundle's loss does not have."""
    fits = manifest.loss.kind in kinds and (manifest.loss.kind not in CLASSES or class_label(manifest) is not None)
    if not fits:
        raise WrongMetric(
            f"The metric {metric!r} is not defined for the loss {manifest.loss.kind!r} of the bundle.",
            context=f"it is defined for {', '.join(kinds)}",
            hint="choose another metric, or pass a function of all outputs and labels (in Python).",
        )
