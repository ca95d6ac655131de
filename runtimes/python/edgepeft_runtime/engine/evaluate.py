"""Evaluate the loss and accuracy of a model on a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.batch import checked_batch, examples_in
from edgepeft_runtime.data.sources import Source
from edgepeft_runtime.engine.engine import Engine, TrainState
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.figures import number
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.base import Score
from edgepeft_runtime.metrics.predictions import class_label, in_order
from edgepeft_runtime.metrics.registry import MetricLike, metric_of, name_of
from edgepeft_runtime.tables import html_facts, html_table


@dataclass(frozen=True)
class Evaluation:
    """Loss, accuracy and further metrics on a data set.

    Attributes:
        loss: mean over all labels that are not ignored, weighted as the loss weights them.
        accuracy: fraction of correct labels, 0 to 1; ``None`` without class labels.
        examples: number of examples.
        metrics: the scores of further metrics, by name.
    """

    loss: float
    accuracy: float | None
    examples: int
    metrics: Mapping[str, Score] = field(default_factory=dict)

    @property
    def deciding(self) -> Score:
        """The score by which adapters are compared: that of the first metric or, without one, the loss."""
        return next(iter(self.metrics.values()), Score(self.loss, greater_is_better=False))

    def __repr__(self) -> str:
        """The figures with the digits that mean something."""
        accuracy = "" if self.accuracy is None else f", accuracy={number(self.accuracy)}"
        others = "".join(f", {name}={number(score.value)}" for name, score in self.metrics.items())
        return f"Evaluation(loss={number(self.loss)}{accuracy}{others}, examples={self.examples})"

    def _repr_html_(self) -> str:
        """A row per figure, and the confusion matrix if there is one."""
        figures = {"loss": self.loss, "accuracy": self.accuracy}
        figures |= {name: score.value for name, score in self.metrics.items() if score.matrix is None}
        facts = {name: number(value) for name, value in figures.items() if value is not None}
        tables = [html_facts(f"{self.examples} examples", facts)]
        for score in self.metrics.values():
            if score.matrix is not None:
                rows = [(name, *counts) for name, counts in zip(score.names, score.matrix, strict=True)]
                tables.append(html_table(rows, ["true \\ predicted", *score.names]))
        return "".join(tables)


def evaluate(
    engine: Engine, manifest: Manifest, state: TrainState, source: Source, metrics: Sequence[MetricLike] = ()
) -> Evaluation:
    """Evaluate a state on all batches of a source.

    Raises:
        SettingError: a metric is unknown, or not defined for the bundle's loss.
        BatchError: a batch does not fit the bundle.
        DataError: there are no batches, or every label is ignored.
    """
    loss_sum = loss_weight = 0.0
    examples = 0
    accuracy = _Accuracy(manifest)
    collectors = {name_of(metric): metric_of(metric).collector(manifest) for metric in metrics}
    for batch in source.batches(0):
        arrays = checked_batch(batch, manifest)
        result = engine.evaluate(state, arrays)
        loss_sum, loss_weight = loss_sum + result.loss_sum, loss_weight + result.loss_weight
        examples += examples_in(arrays, manifest)
        accuracy.add(result.outputs, arrays)
        for collector in collectors.values():
            collector.add(result.outputs, arrays)
    if loss_weight == 0.0:
        context = "every label is ignored." if examples else "the data has no batches."
        raise NoData("There is nothing to evaluate.", context=context, hint="pass labelled examples.")
    scores = {name: collector.score() for name, collector in collectors.items()}
    return Evaluation(loss_sum / loss_weight, accuracy.value, examples, scores)


class _Accuracy:
    """Counts correct labels of classes, which needs no memory for a large vocabulary."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._correct = self._total = 0

    def add(self, outputs: Mapping[str, Array], batch: Mapping[str, Array]) -> None:
        counts = count_correct(outputs, batch, self._manifest)
        self._correct, self._total = self._correct + counts[0], self._total + counts[1]

    @property
    def value(self) -> float | None:
        """The fraction of correct labels; ``None`` if there are none."""
        return self._correct / self._total if self._total else None


def count_correct(outputs: Mapping[str, Array], batch: Mapping[str, Array], manifest: Manifest) -> tuple[int, int]:
    """Count correct labels and all labels; ignored ones are left out."""
    label = class_label(manifest)
    if label is None:
        return 0, 0
    scores, labels = in_order(outputs, batch, manifest, label)
    if scores.shape[:-1] != labels.shape:
        return 0, 0
    counted = labels != label.ignore_index
    return int(((scores.argmax(axis=-1) == labels) & counted).sum()), int(counted.sum())
