"""How far a graph's tensors are from those of its source, and how far they may be."""

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
"""What stands for infinity: masks are filled with the lowest finite number or with -inf."""


@dataclass(frozen=True)
class Example:
    """Inputs that a source was run on, and the outputs it gave, by name."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Verified:
    """The runs that a forward graph was compared on.

    Attributes:
        examples: at two sizes where the source runs at two; none where it could not be run.
        tolerance: largest relative difference that counts as equal.
        notes: what the user should know about the source.
    """

    examples: tuple[Example, ...] = ()
    tolerance: float = FLOAT32
    notes: tuple[str, ...] = ()


def difference(ours: Array, reference: Array) -> float:
    """max|ours - reference| / max|reference| over what is finite in the reference; infinite where shapes differ.

    Of integers and booleans, the fraction that differs.
    """
    if ours.shape != reference.shape:
        return np.inf
    if reference.size == 0:
        return 0.0
    if not _is_float(reference):
        return float(np.mean(ours != reference))
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    finite = np.abs(b) < _HUGE  # NaN is not: what the source does not know, is not compared
    if bool((np.isinf(b) & ~(np.abs(a) >= _HUGE)).any()) or not bool(np.isfinite(a[finite]).all()):
        return np.inf
    largest = float(np.abs(b[finite]).max(initial=0.0))
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / max(largest, _TINY)


def _is_float(array: Array) -> bool:
    return np.issubdtype(array.dtype, np.floating) or array.dtype.name in ("bfloat16", "float16")
