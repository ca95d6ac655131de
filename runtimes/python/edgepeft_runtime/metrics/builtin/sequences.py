"""Metrics of labelled sequences: entities of a tagger, error rates of characters and words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import WrongMetric
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.base import Arrays, Collector, Metric, Score
from edgepeft_runtime.metrics.predictions import CLASSES, class_label, in_order, require_kind, transcripts
from edgepeft_runtime.metrics.spans import distance, entities, joined, words

CTC = "ctc"
"""The kind of loss whose labels are not aligned with the outputs."""


class _Sequences:
    """Collects the predicted and the true classes of each sequence, without ignored positions.

    Args:
        metric: Adds a pair of sequences to its counts, and returns the score of them.
        manifest: The bundle's.
    """

    def __init__(self, metric: _OfSequences, manifest: Manifest) -> None:
        self._metric, self._manifest = metric, manifest
        self._counts = np.zeros(3, np.int64)

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        names = self._manifest.classes or tuple(map(str, range(self._manifest.labels[0].classes or 0)))
        for pair in self._pairs(outputs, batch):
            self._counts += self._metric.counts(*([names[index] for index in side] for side in pair))

    def _pairs(self, outputs: Arrays, batch: Arrays) -> Iterable[tuple[Array, Array]]:
        """Yield the predicted and the true classes of each sequence."""
        if self._manifest.loss.kind == CTC:
            yield from transcripts(outputs, batch, self._manifest)
            return
        label = class_label(self._manifest)
        assert label is not None  # require_kind
        scores, labels = in_order(outputs, batch, self._manifest, label)
        for row, true in zip(scores.argmax(axis=-1), labels, strict=True):
            counted = true != label.ignore_index
            yield row[counted], true[counted]

    def score(self) -> Score:
        return self._metric.finish(*map(int, self._counts))


@dataclass(frozen=True)
class _OfSequences(Metric):
    aligned: ClassVar[bool] = True
    """Whether each position of the label has a predicted class."""

    def collector(self, manifest: Manifest) -> Collector:
        require_kind(self.name, manifest, *CLASSES, *(() if self.aligned else (CTC,)))
        label = manifest.labels[0] if manifest.loss.kind == CTC else class_label(manifest)
        if label is None or len(label.shape) != 2:
            raise WrongMetric(
                f"The metric {self.name!r} needs a label for each position of a sequence.",
                context=f"the label has the shape [{', '.join(map(str, label.shape if label is not None else ()))}]",
                hint="choose another metric, such as accuracy or f1.",
            )
        return _Sequences(self, manifest)

    def counts(self, predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
        """Return what is counted of one sequence."""
        raise NotImplementedError

    def finish(self, first: int, second: int, third: int) -> Score:
        """Return the score of the summed counts."""
        raise NotImplementedError


@dataclass(frozen=True)
class EntityF1(_OfSequences):
    """F1 over entities (micro): spans of the classes B-X and I-X whose type and both ends are right."""

    name: ClassVar[str] = "entity_f1"

    def counts(self, predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
        found, wanted = entities(predicted), entities(true)
        return len(found & wanted), len(found), len(wanted)

    def finish(self, first: int, second: int, third: int) -> Score:
        return Score(2 * first / (second + third) if second + third else float("nan"))


@dataclass(frozen=True)
class CharacterErrorRate(_OfSequences):
    """Insertions, deletions and substitutions per character; each class of a position is a character."""

    name: ClassVar[str] = "cer"
    aligned: ClassVar[bool] = False
    greater_is_better: ClassVar[bool] = False

    def counts(self, predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
        return distance(predicted, true), len(true), 0

    def finish(self, first: int, second: int, third: int) -> Score:
        del third
        return Score(first / second if second else float("nan"), greater_is_better=False)


@dataclass(frozen=True)
class WordErrorRate(CharacterErrorRate):
    """Insertions, deletions and substitutions per word; words are separated by the class of a space or a bar."""

    name: ClassVar[str] = "wer"

    def counts(self, predicted: Sequence[str], true: Sequence[str]) -> tuple[int, int, int]:
        wanted = words(joined(true))
        return distance(words(joined(predicted)), wanted), len(wanted), 0
