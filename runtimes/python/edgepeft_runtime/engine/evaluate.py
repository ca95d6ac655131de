"""Evaluate the loss and accuracy of a model on a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgepeft_runtime.bundle.manifest import LabelSpec, Manifest
from edgepeft_runtime.data.batch import checked_batch, examples_in
from edgepeft_runtime.data.sources import Source
from edgepeft_runtime.engine.engine import Engine, TrainState
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy on a data set.

    Attributes:
        loss: mean over all labels that are not ignored, weighted as the loss weights them.
        accuracy: fraction of correct labels, 0 to 1; ``None`` without class labels.
        examples: number of examples.
    """

    loss: float
    accuracy: float | None
    examples: int


def evaluate(engine: Engine, manifest: Manifest, state: TrainState, source: Source) -> Evaluation:
    """Evaluate a state on all batches of a source.

    Raises:
        BatchError: a batch does not fit the bundle.
        DataError: there are no batches, or every label is ignored.
    """
    loss_sum = loss_weight = 0.0
    examples = correct = total = 0
    for batch in source.batches(0):
        arrays = checked_batch(batch, manifest)
        result = engine.evaluate(state, arrays)
        loss_sum, loss_weight = loss_sum + result.loss_sum, loss_weight + result.loss_weight
        examples += examples_in(arrays, manifest)
        counts = count_correct(result.outputs, arrays, manifest) or (0, 0)
        correct, total = correct + counts[0], total + counts[1]
    if loss_weight == 0.0:
        context = "every label is ignored." if examples else "the data has no batches."
        raise NoData("There is nothing to evaluate.", context=context, hint="pass labelled examples.")
    return Evaluation(loss_sum / loss_weight, correct / total if total else None, examples)


def class_label(manifest: Manifest) -> LabelSpec | None:
    """Return the label that accuracy is about; ``None`` where the loss is not one of classes."""
    if manifest.loss.kind not in ("cross_entropy", "causal_lm"):
        return None
    labels = [label for label in manifest.labels if label.classes is not None]
    return labels[0] if len(labels) == 1 else None


def count_correct(
    outputs: Mapping[str, Array], batch: Mapping[str, Array], manifest: Manifest
) -> tuple[int, int] | None:
    """Count correct labels and all labels, by the argmax over the last axis of the first output.

    Ignored labels are left out. For ``causal_lm`` position t predicts label t + 1, as in the loss.

    Returns:
        ``(correct, total)``, or ``None`` where output and label do not have the shapes of a classification.
    """
    label = class_label(manifest)
    if label is None:
        return None
    scores, labels = outputs[manifest.outputs[0].name], batch[label.name]
    if manifest.loss.kind == "causal_lm":
        scores, labels = scores[:, :-1], labels[:, 1:]
    if scores.shape[:-1] != labels.shape:
        return None
    counted = labels != label.ignore_index
    return int(((scores.argmax(axis=-1) == labels) & counted).sum()), int(counted.sum())
