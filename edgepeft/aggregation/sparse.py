"""Changes of single elements: indices and values; absent elements have not changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepeft.aggregation.pairs import Float64s

Indices = NDArray[np.int64]
SparseChange = tuple[Indices, Float64s]
"""Ascending positions in a tensor, and the values added there."""

EMPTY: SparseChange = np.zeros(0, np.int64), np.zeros(0, np.float64)


def read_sparse(indices: NDArray[np.int32], values: NDArray[np.float32]) -> SparseChange:
    """Convert a change from a file. Indices of -1 are not picked yet and change nothing."""
    if indices.size == 0 or indices[0] < 0:
        return EMPTY
    return indices.astype(np.int64), values.astype(np.float64)


def add_sparse(one: SparseChange, other: SparseChange, factor: float = 1.0) -> SparseChange:
    """Return ``one + factor · other`` over the union of their indices."""
    if np.array_equal(one[0], other[0]):  # a fleet whose indices are picked already
        return one[0], one[1] + factor * other[1]
    indices = np.union1d(one[0], other[0])
    return indices, on_indices(one, indices) + factor * on_indices(other, indices)


def on_indices(change: SparseChange, indices: Indices) -> Float64s:
    """Return the change at these indices, which must include all of its own."""
    values = np.zeros(indices.size)
    values[np.searchsorted(indices, change[0])] = change[1]
    return values


def largest(change: SparseChange, count: int) -> tuple[SparseChange, float]:
    """Return the ``count`` largest elements, the first among equals, and their fraction of the squared norm."""
    indices, values = change
    if indices.size <= count:
        return change, 1.0
    kept = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    whole = float(np.square(values).sum())
    fraction = float(np.square(values[kept]).sum()) / whole if whole else 1.0
    return (indices[kept], values[kept]), fraction
