"""A float matrix as small integers and scales."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PAIR_LIMIT = 127.0
"""Largest sum of two neighbouring weights of one sign, in steps.

Without VNNI, x86 kernels add two products of a byte and a weight in 16 bits: 255 · (a + b) has to fit. ARM,
WebAssembly and VNNI add in 32 bits. Under this limit all of them give the same integers, and a weight keeps more of its
8 bits than under the usual remedy, 7 bits for all.
"""

SHRINKAGE = tuple(np.linspace(0.7, 1.0, 13).tolist())
"""Shares of a block's range that are tried for 4 bits: cutting off an outlier may serve all the others."""


@dataclass(frozen=True)
class Int8Matrix:
    """``values · scale`` is the matrix; ``axis`` is the axis of ``values`` along which ``scale`` lies."""

    values: NDArray[np.int8]
    scale: Floats
    axis: int


@dataclass(frozen=True)
class Int4Matrix:
    """Rows in blocks of 4-bit numbers, two to a byte, the first in the low half: the layout of ``MatMulNBits``.

    Attributes:
        values: uint8 [rows, blocks, block / 2]; 8 stands for zero.
        scales: [rows, blocks].
    """

    values: NDArray[np.uint8]
    scales: Floats

    @property
    def block(self) -> int:
        """Elements per scale."""
        return 2 * int(self.values.shape[2])


def to_int8(matrix: Floats, axis: int) -> Int8Matrix:
    """Round to int8, symmetric, with one scale for each index of ``axis``; other axes may be any number.

    Of a matrix, neighbours along both axes stay within :data:`PAIR_LIMIT`, as it is multiplied both ways round.
    """
    moved = np.moveaxis(matrix.astype(np.float32, copy=False), axis, -1).reshape(-1, matrix.shape[axis])
    step = np.maximum(np.abs(moved).max(axis=0) / 127.0, _pair_sums(moved) / PAIR_LIMIT)
    step = np.where(step > 0, step, np.float32(1.0)).astype(np.float32)
    if matrix.ndim == 2:
        step = _widened(moved, step)
    values = np.rint(moved / step).astype(np.int8).reshape(*np.delete(matrix.shape, axis), matrix.shape[axis])
    return Int8Matrix(np.ascontiguousarray(np.moveaxis(values, -1, axis)), step, axis)


def _pair_sums(rows: Floats) -> Floats:
    """For each column, the largest sum of two neighbours of one sign: what a kernel adds up in one step."""
    pairs = rows[: len(rows) // 2 * 2].reshape(-1, 2, rows.shape[1])
    positive, negative = np.maximum(pairs, 0).sum(axis=1), np.minimum(pairs, 0).sum(axis=1)
    sums: Floats = np.maximum(positive.max(axis=0, initial=0), -negative.min(axis=0, initial=0))
    return sums


def _widened(rows: Floats, step: Floats) -> Floats:
    """Larger steps for two neighbouring columns whose integers would pass the limit when the matrix is transposed."""
    columns = rows.shape[1] // 2 * 2
    pairs = (rows / step)[:, :columns].reshape(-1, 2)  # a row of it is two neighbours
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=1), -np.minimum(pairs, 0).sum(axis=1))
    factor = np.ones_like(step)
    factor[:columns] = np.repeat(sums.reshape(len(rows), -1).max(axis=0, initial=0) / PAIR_LIMIT, 2)
    widened: Floats = step * np.maximum(factor, 1)
    return widened


def to_int4(matrix: Floats, block: int) -> Int4Matrix:
    """Round the rows of ``matrix`` to 4 bits, with a scale for every ``block`` elements, chosen for the least error."""
    rows, width = matrix.shape
    blocks = -(-width // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :width] = matrix
    grouped = padded.reshape(rows, blocks, block)
    scales = _best_scales(grouped)
    steps = (np.clip(np.rint(grouped / scales[..., None]), -8, 7) + 8).astype(np.uint8)
    halves = steps.reshape(rows, blocks, block // 2, 2)
    return Int4Matrix(halves[..., 0] | np.left_shift(halves[..., 1], 4, dtype=np.uint8), scales)


def _best_scales(grouped: Floats) -> Floats:
    """Per block, of some scales up to largest / 8, that of the least squared error; its sign makes the largest a -8."""
    at = np.abs(grouped).argmax(axis=-1)[..., None]
    full = -np.take_along_axis(grouped, at, axis=-1)[..., 0] / 8.0
    full = np.where(full == 0, np.float32(1.0), full).astype(np.float32)
    best, least = full, np.full(full.shape, np.inf, np.float32)
    for share in SHRINKAGE:
        scale = (full * np.float32(share)).astype(np.float32)
        rounded = np.clip(np.rint(grouped / scale[..., None]), -8, 7) * scale[..., None]
        error = np.square(rounded - grouped).sum(axis=-1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best
