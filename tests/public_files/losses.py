"""The losses of the files, in float64, for finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.generic]


def mse(scores: Floats, labels: Labels) -> float:
    return float(np.mean((scores - labels) ** 2))


def bce_with_logits(scores: Floats, labels: Labels) -> float:
    return float(np.mean(np.logaddexp(0.0, scores) - scores * labels))


def cross_entropy(scores: Floats, labels: Labels) -> float:
    rows = scores.reshape(-1, scores.shape[-1])
    picked = rows[np.arange(len(rows)), labels.reshape(-1).astype(np.int64)]
    return float(np.mean(np.logaddexp.reduce(rows, axis=1) - picked))


LOSSES: dict[str, Callable[[Floats, Labels], float]] = {
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "cross_entropy": cross_entropy,
}
