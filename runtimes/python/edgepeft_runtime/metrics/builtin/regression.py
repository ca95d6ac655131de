"""Metrics of predicted numbers: mean absolute error, root of the mean squared error, coefficient of determination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.metrics.base import Arrays, Collector, Metric, Score
from edgepeft_runtime.metrics.predictions import NUMBERS, numbers, require_kind

Figures = NDArray[np.float64]


@dataclass(frozen=True)
class Errors:
    """Sums over all examples, float64 ``[numbers]`` each.

    Attributes:
        count: Number of examples.
        absolute, squared: Sums of absolute and of squared errors.
        spread: Sum of squared differences of the true numbers from their mean.
    """

    count: int
    absolute: Figures
    squared: Figures
    spread: Figures


class _Summed:
    """Sums errors; means and spreads of batches are combined as by Chan, Golub and LeVeque (1979)."""

    def __init__(self, metric: _OfNumbers, manifest: Manifest) -> None:
        self._metric, self._manifest = metric, manifest
        self._count = 0
        self._mean = self._spread = self._absolute = self._squared = np.zeros(1)

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        predicted, true = numbers(outputs, batch, self._manifest)
        if predicted.shape != true.shape or not len(true):
            return
        count, difference = self._count + len(true), true.mean(axis=0) - self._mean
        self._spread = self._spread + ((true - true.mean(axis=0)) ** 2).sum(axis=0)
        self._spread = self._spread + difference**2 * self._count * len(true) / count
        self._mean = self._mean + difference * len(true) / count
        self._absolute = self._absolute + np.abs(predicted - true).sum(axis=0)
        self._squared = self._squared + ((predicted - true) ** 2).sum(axis=0)
        self._count = count

    def score(self) -> Score:
        if not self._count:
            return Score(float("nan"), self._metric.greater_is_better)
        errors = Errors(self._count, self._absolute, self._squared, self._spread)
        return Score(self._metric.finish(errors), self._metric.greater_is_better)


@dataclass(frozen=True)
class _OfNumbers(Metric):
    greater_is_better: ClassVar[bool] = False

    def collector(self, manifest: Manifest) -> Collector:
        require_kind(self.name, manifest, *NUMBERS)
        return _Summed(self, manifest)

    def finish(self, errors: Errors) -> float:
        """Return the value."""
        raise NotImplementedError


@dataclass(frozen=True)
class MeanAbsoluteError(_OfNumbers):
    """The mean absolute error."""

    name: ClassVar[str] = "mae"

    def finish(self, errors: Errors) -> float:
        return float((errors.absolute / errors.count).mean())


@dataclass(frozen=True)
class RootMeanSquaredError(_OfNumbers):
    """The root of the mean squared error."""

    name: ClassVar[str] = "rmse"

    def finish(self, errors: Errors) -> float:
        return float(np.sqrt((errors.squared / errors.count).mean()))


@dataclass(frozen=True)
class Determination(_OfNumbers):
    """The fraction of the variance that is predicted (R2), as a mean over the numbers of an example."""

    name: ClassVar[str] = "r2"
    greater_is_better: ClassVar[bool] = True

    def finish(self, errors: Errors) -> float:
        spread, squared = errors.spread, errors.squared
        constant = np.where(squared > 0, 0.0, 1.0)  # scikit-learn's value where all true numbers are equal
        return float(np.where(spread > 0, 1 - squared / np.where(spread > 0, spread, 1), constant).mean())
