"""The interface of a metric: a figure over a whole data set, which is collected batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import WrongMetric
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.settings import Named

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Score:
    """The value of a metric.

    Attributes:
        value: The figure by which adapters are compared; NaN where the data does not define it.
        greater_is_better: Whether a greater value is better.
        parts: Further figures, such as one per class.
        matrix: Counts by true class (rows) and predicted class (columns), for a confusion matrix.
        names: The names of its classes: the bundle's, or their indices.
    """

    value: float
    greater_is_better: bool = True
    parts: Mapping[str, float] = field(default_factory=dict)
    matrix: tuple[tuple[int, ...], ...] | None = None
    names: tuple[str, ...] = ()

    def better_than(self, value: float | None) -> bool:
        """Whether the value is better than another one, which may be unknown. NaN is never better."""
        if not math.isfinite(self.value):
            return False
        if value is None or not math.isfinite(value):
            return True
        return self.value > value if self.greater_is_better else self.value < value


class Collector(Protocol):
    """Collects what a metric needs of each batch."""

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        """Add a batch: the model's outputs, and inputs and labels, by name."""

    def score(self) -> Score:
        """Return the score over all batches."""


@dataclass(frozen=True)
class Metric(Named):
    """A metric by name. A subclass is a frozen dataclass of its settings."""

    greater_is_better: ClassVar[bool] = True

    def collector(self, manifest: Manifest) -> Collector:
        """Return a new collector for a bundle.

        Raises:
            SettingError: The metric is not defined for the bundle's loss.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class OwnMetric:
    """A metric of one's own: a function of all outputs and of all inputs and labels, each concatenated, by name.

    It returns a number, of which a greater one is better unless the function has ``greater_is_better = False``.
    """

    function: Callable[[dict[str, Array], dict[str, Array]], float]

    @property
    def name(self) -> str:
        """The name of the function."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def collector(self, manifest: Manifest) -> Collector:
        """See ``Metric.collector``."""
        del manifest
        return _Concatenated(self.function)


class _Concatenated:
    def __init__(self, function: Callable[[dict[str, Array], dict[str, Array]], float]) -> None:
        self._function = function
        self._outputs: dict[str, list[Array]] = {}
        self._batches: dict[str, list[Array]] = {}

    def add(self, outputs: Arrays, batch: Arrays) -> None:
        for collected, arrays in ((self._outputs, outputs), (self._batches, batch)):
            for name, array in arrays.items():
                collected.setdefault(name, []).append(array)

    def score(self) -> Score:
        value = self._function(_concatenated(self._outputs), _concatenated(self._batches))
        return Score(float(value), bool(getattr(self._function, "greater_is_better", True)))


def _concatenated(parts: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
    ragged = [name for name, arrays in parts.items() if len({array.shape[1:] for array in arrays}) > 1]
    if ragged:
        raise WrongMetric(
            "A metric of one's own needs batches of one shape.",
            context=f"batches differ in {', '.join(map(repr, ragged))}",
            hint="pad all examples to one length, or choose a metric by name.",
        )
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
