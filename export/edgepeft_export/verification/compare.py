"""The difference between a graph's tensors and those of its source, and its tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]

FLOAT32 = 1e-4
"""Largest max|difference| / max|reference| of a source that computes in float32."""

HALF = 5e-3
"""The same of a source that computes in float16 or bfloat16."""

QUANTIZED = 5e-2
"""The same of a file whose activations are rounded to 8 bits: a value next to a step may be rounded either way."""

_TINY = 1e-6
"""References below this size are compared as if they were this large."""

_HUGE = 1e30
"""Counts as infinity, because masks are filled with the lowest finite number or with -inf."""


@dataclass(frozen=True)
class Example:
    """Inputs of a run of a source, and its outputs, by name."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Verified:
    """The runs that a forward graph was compared on.

    Attributes:
        examples: at two sizes where the source runs at two; none where it could not be run.
        tolerance: largest relative difference that counts as equal.
        notes: facts about the source for the user.
    """

    examples: tuple[Example, ...] = ()
    tolerance: float = FLOAT32
    notes: tuple[str, ...] = ()


def difference(ours: Array, reference: Array) -> float:
    """max|ours - reference| / max|reference| over the finite elements of the reference; infinite where shapes differ.

    For integers and booleans, the fraction of elements that differ.
    """
    if ours.shape != reference.shape:
        return np.inf
    if reference.size == 0:
        return 0.0
    if not _is_float(reference):
        return float(np.mean(ours != reference))
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    finite = np.abs(b) < _HUGE  # false for NaN: undefined values of the source are not compared
    if bool((np.isinf(b) & ~(np.abs(a) >= _HUGE)).any()) or not bool(np.isfinite(a[finite]).all()):
        return np.inf
    largest = float(np.abs(b[finite]).max(initial=0.0))
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / max(largest, _TINY)


def _is_float(array: Array) -> bool:
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name in ("bfloat16", "float16")
