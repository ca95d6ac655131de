"""Metrics of probabilities: perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.metrics.base import Arrays, Collector, Metric, Score
from edgepeft_runtime.metrics.predictions import CLASSES, aligned, require_kind


@dataclass(frozen=True)
class Perplexity(Metric):
    """The exponential of the mean negative log-probability of the labels, without smoothing and class weights."""

    name: ClassVar[str] = "perplexity"
    greater_is_better: ClassVar[bool] = False

    def collector(self, manifest: Manifest) -> Collector:
        require_kind(self.name, manifest, *CLASSES)
        return _Summed(manifest)


class _Summed:
    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._sum, self._count = 0.0, 0

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        found = aligned(outputs, batch, self._manifest)
        if found is None or not len(found.labels):
            return
        own = np.take_along_axis(found.scores, found.labels[:, None], axis=-1)[:, 0]
        highest = found.scores.max(axis=-1)
        total = np.exp(found.scores - highest[:, None]).sum(axis=-1, dtype=np.float64)
        self._sum += float((highest.astype(np.float64) + np.log(total) - own).sum())
        self._count += len(found.labels)

    def score(self) -> Score:
        if not self._count:
            return Score(float("nan"), greater_is_better=False)
        mean = self._sum / self._count
        return Score(math.exp(mean) if mean < 700 else math.inf, greater_is_better=False)
