"""Metrics of the order of scores: the area under the ROC curve, recall among the first k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.base import Arrays, Collector, Metric, Score
from edgepeft_runtime.metrics.predictions import BINARY, CLASSES, aligned, binary, questions, require_kind
from edgepeft_runtime.settings import setting


def auc(scores: Array, positive: NDArray[np.bool_]) -> float:
    """Return the probability that a positive example has a greater score than a negative one; equal scores count half.

    NaN if all examples are alike (Fawcett, 2006; the statistic of Mann and Whitney).
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # equal scores share the mean of their ranks
    total = float(ranks[inverse.reshape(-1)][positive].sum())
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


@dataclass(frozen=True)
class Auc(Metric):
    """The area under the ROC curve: of two classes, or the mean over classes, each against the rest."""

    name: ClassVar[str] = "auc"

    def collector(self, manifest: Manifest) -> Collector:
        require_kind(self.name, manifest, "cross_entropy", *BINARY)
        return _Scores(manifest)


class _Scores:
    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._scores: list[Array] = []
        self._positive: list[NDArray[np.bool_]] = []

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        if self._manifest.loss.kind in BINARY:
            scores, positive = binary(outputs, batch, self._manifest)
        else:
            found = aligned(outputs, batch, self._manifest)
            if found is None:
                return
            scores = found.scores.astype(np.float64)
            scores = scores - scores.max(axis=-1, keepdims=True)
            scores = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
            positive = found.labels[:, None] == np.arange(scores.shape[-1])
        self._scores.append(scores)
        self._positive.append(positive)

    def score(self) -> Score:
        if not self._scores:
            return Score(float("nan"))
        scores, positive = np.concatenate(self._scores), np.concatenate(self._positive)
        if self._manifest.loss.kind not in BINARY and scores.shape[1] == 2:
            return Score(auc(scores[:, 1], positive[:, 1]))
        values = [auc(scores[:, column], positive[:, column]) for column in range(scores.shape[1])]
        known = [value for value in values if not np.isnan(value)]
        names = questions(self._manifest, len(values))
        parts = {name: value for name, value in zip(names, values, strict=True) if not np.isnan(value)}
        return Score(float(np.mean(known)) if known else float("nan"), parts=parts if len(values) > 1 else {})


EMBEDDINGS = "multiple_negatives"
"""The kind of loss of embeddings that belong together."""

_ROWS = 256
"""Anchors that are compared at a time."""


@dataclass(frozen=True)
class RecallAtK(Metric):
    """The fraction of labels among the k classes of the highest scores; ``recall@5`` chooses k.

    Of embeddings that belong together: the fraction of anchors whose own positive is among the k most similar ones of
    the whole data set.
    """

    name: ClassVar[str] = "recall@k"
    k: int = setting(10, "Number of the highest scores.", minimum=1)

    def collector(self, manifest: Manifest) -> Collector:
        require_kind(self.name, manifest, *CLASSES, EMBEDDINGS)
        return (_Retrieved if manifest.loss.kind == EMBEDDINGS else _Found)(manifest, self.k)


class _Found:
    def __init__(self, manifest: Manifest, k: int) -> None:
        self._manifest, self._k = manifest, k
        self._found = self._total = 0

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        found = aligned(outputs, batch, self._manifest)
        if found is None:
            return
        own = np.take_along_axis(found.scores, found.labels[:, None], axis=-1)
        self._found += int(((found.scores > own).sum(axis=-1) < self._k).sum())
        self._total += len(found.labels)

    def score(self) -> Score:
        return Score(self._found / self._total if self._total else float("nan"))


class _Retrieved:
    """Collects the embeddings of anchors and of their positives: two outputs, or one ``[batch, texts, width]``."""

    def __init__(self, manifest: Manifest, k: int) -> None:
        self._manifest, self._k = manifest, k
        self._pairs: list[tuple[Array, Array]] = []

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        del batch
        found = [outputs[spec.name] for spec in self._manifest.outputs]
        texts = list(np.moveaxis(found[0], 1, 0)) if found[0].ndim == 3 else found
        if len(texts) > 1:
            self._pairs.append((self._scaled(texts[0]), self._scaled(texts[1])))

    def _scaled(self, embeddings: Array) -> Array:
        if self._manifest.loss.settings.get("similarity") == "dot":
            return embeddings
        norms: Array = np.linalg.norm(embeddings, axis=-1, keepdims=True)
        return np.asarray(embeddings / np.maximum(norms, 1e-12))

    def score(self) -> Score:
        if not self._pairs:
            return Score(float("nan"))
        anchors, positives = (np.concatenate(side) for side in zip(*self._pairs, strict=True))
        retrieved = 0
        for start in range(0, len(anchors), _ROWS):
            scores = anchors[start : start + _ROWS] @ positives.T
            own = scores[np.arange(len(scores)), start + np.arange(len(scores))]
            retrieved += int(((scores > own[:, None]).sum(axis=1) < self._k).sum())
        return Score(retrieved / len(anchors))
