"""Metrics of predicted classes: accuracy, precision, recall, F1, confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.metrics.base import Arrays, Collector, Metric, Score
from edgepeft_runtime.metrics.predictions import BINARY, CLASSES, aligned, binary, questions, require_kind

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """Counts of predictions.

    Attributes:
        correct: Per class: predicted and true.
        predicted: Per class: predicted.
        true: Per class: true.
        exact: Examples of which everything is right.
        total: Examples.
        matrix: Counts by true and predicted class; ``None`` for yes-or-no questions.
    """

    correct: Counts
    predicted: Counts
    true: Counts
    exact: int
    total: int
    matrix: Counts | None


class _Confused:
    """Counts, for labels of one class each, or for one or several yes-or-no questions.

    Args:
        manifest: The bundle's.
        finish: Returns the score for the counts and the names of the classes.
    """

    def __init__(self, manifest: Manifest, finish: Callable[[Confusion, list[str]], Score]) -> None:
        self._manifest, self._finish = manifest, finish
        self._matrix: Counts | None = None
        self._counts: Counts | None = None
        self._exact = self._total = 0

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        if self._manifest.loss.kind in BINARY:
            scores, labels = binary(outputs, batch, self._manifest)
            predicted = scores > 0
            counts = np.stack([(predicted & labels).sum(0), predicted.sum(0), labels.sum(0)]).astype(np.int64)
            self._counts = counts if self._counts is None else self._counts + counts
            self._exact += int((predicted == labels).all(axis=1).sum())
            self._total += len(labels)
            return
        found = aligned(outputs, batch, self._manifest)
        if found is None or not len(found.labels):
            return
        classes = found.scores.shape[-1]
        if self._matrix is None:
            self._matrix = np.zeros((classes, classes), np.int64)
        np.add.at(self._matrix, (found.labels, found.scores.argmax(axis=-1)), 1)

    def score(self) -> Score:
        if self._counts is not None:
            correct, predicted, true = self._counts
            confusion = Confusion(correct, predicted, true, self._exact, self._total, None)
        else:
            matrix = np.zeros((1, 1), np.int64) if self._matrix is None else self._matrix
            right = np.diagonal(matrix)
            confusion = Confusion(right, matrix.sum(0), matrix.sum(1), int(right.sum()), int(matrix.sum()), matrix)
        return self._finish(confusion, questions(self._manifest, len(confusion.true)))


@dataclass(frozen=True)
class _OfClasses(Metric):
    """A metric of a confusion matrix."""

    def collector(self, manifest: Manifest) -> Collector:
        require_kind(self.name, manifest, *CLASSES, *BINARY)
        return _Confused(manifest, self.finish)

    def finish(self, confusion: Confusion, names: list[str]) -> Score:
        """Return the score."""
        raise NotImplementedError


def _divided(numerator: Counts, denominator: Counts) -> NDArray[np.float64]:
    """Divide counts; 0 where nothing is counted, as scikit-learn's ``zero_division=0``."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def _mean_over_classes(values: NDArray[np.float64], confusion: Confusion, names: list[str]) -> Score:
    """Average over the classes that occur in labels or predictions; of one yes-or-no question only the yes counts."""
    occurs = (confusion.true + confusion.predicted) > 0
    if confusion.matrix is None:
        occurs[:] = True  # scikit-learn counts every question
    mean = float(values[occurs].mean()) if occurs.any() else float("nan")
    parts = {name: float(value) for name, value, own in zip(names, values, occurs, strict=True) if own}
    return Score(mean, parts=parts if len(names) > 1 else {})


@dataclass(frozen=True)
class Accuracy(_OfClasses):
    """The fraction of examples of which everything is right."""

    name: ClassVar[str] = "accuracy"

    def finish(self, confusion: Confusion, names: list[str]) -> Score:
        del names
        return Score(confusion.exact / confusion.total if confusion.total else float("nan"))


@dataclass(frozen=True)
class F1(_OfClasses):
    """The mean over the classes of the harmonic mean of precision and recall (macro); each class among the parts."""

    name: ClassVar[str] = "f1"

    def finish(self, confusion: Confusion, names: list[str]) -> Score:
        return _mean_over_classes(
            _divided(2 * confusion.correct, confusion.predicted + confusion.true), confusion, names
        )


@dataclass(frozen=True)
class Precision(_OfClasses):
    """The mean over the classes of the fraction of predictions that are right (macro); each class among the parts."""

    name: ClassVar[str] = "precision"

    def finish(self, confusion: Confusion, names: list[str]) -> Score:
        return _mean_over_classes(_divided(confusion.correct, confusion.predicted), confusion, names)


@dataclass(frozen=True)
class Recall(_OfClasses):
    """The mean over the classes of the fraction of examples that are found (macro); each class among the parts."""

    name: ClassVar[str] = "recall"

    def finish(self, confusion: Confusion, names: list[str]) -> Score:
        return _mean_over_classes(_divided(confusion.correct, confusion.true), confusion, names)


@dataclass(frozen=True)
class ConfusionMatrix(_OfClasses):
    """The counts by true and predicted class; its value is the accuracy."""

    name: ClassVar[str] = "confusion"

    def collector(self, manifest: Manifest) -> Collector:
        require_kind(self.name, manifest, *CLASSES)
        return _Confused(manifest, self.finish)

    def finish(self, confusion: Confusion, names: list[str]) -> Score:
        matrix = () if confusion.matrix is None else tuple(tuple(map(int, row)) for row in confusion.matrix)
        value = confusion.exact / confusion.total if confusion.total else float("nan")
        return Score(value, matrix=matrix, names=tuple(names))
