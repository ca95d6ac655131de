"""A float matrix as small integers and scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
_Number = TypeVar("_Number", bound=np.number)

STEPS = 255
"""Steps of the range of an activation in 8 bits."""

MIDDLE = STEPS // 2
"""The constant zero point of a symmetric range."""

LARGEST_PAIR = 128
"""Largest sum of two neighbouring int8 weights of one sign that kernels multiply exactly by activations of 8 bits.

Without VNNI, x86 kernels add two products of a uint8 activation and an int8 weight in 16 bits and saturate:
255 · (a + b) <= 2¹⁵ - 1 = 32767 holds up to a + b = 128. ARM, WebAssembly and VNNI add in 32 bits. Under this limit a
weight keeps more of its 8 bits than under the usual remedy, 7 bits for all.
"""

NARROW_MIDDLE = 64
"""The zero point of a symmetric range that needs no limit: 128 · (127 + 127) = 32512."""

SHRINKAGE = tuple(np.linspace(0.7, 1.0, 7).tolist())
"""Fractions of a block's range that are tried for 4 bits: cutting off an outlier may serve all the others."""


_AT_ONCE = 1 << 20
"""Numbers that are rounded at a time."""


@dataclass(frozen=True)
class Int8Matrix:
    """``values · scale`` is the matrix; ``axis`` is the axis of ``values`` along which ``scale`` lies."""

    values: NDArray[np.int8]
    scale: Float32Array
    axis: int


@dataclass(frozen=True)
class Blocks:
    """Rows in blocks of 4-bit numbers, two to a byte, the first in the low half: the layout of ``MatMulNBits``.

    Attributes:
        values: uint8 [rows, blocks, block / 2]; 8 stands for zero.
        scales: [rows, blocks].
    """

    values: NDArray[np.uint8]
    scales: Float32Array

    @property
    def block(self) -> int:
        """Elements per scale."""
        return 2 * int(self.values.shape[2])


def to_int8(
    matrix: NDArray[np.generic], axis: int, *, both: bool = True, reciprocals: Float32Array | None = None
) -> Int8Matrix:
    """Round to int8, symmetric, with one scale for each index of ``axis``; other axes are free.

    Of a matrix, the sums of neighbours along both axes stay within ``LARGEST_PAIR``, as the backward pass multiplies by
    the transposed matrix; without ``both`` only the sums within a column, for gradients in a range that needs no limit.
    A part at a time becomes float32, and is divided by the ``reciprocals`` of the other axis's factors.
    """
    channels = matrix.shape[axis]
    moved = np.moveaxis(matrix, axis, -1).reshape(-1, channels)
    step, values = np.empty(channels, np.float32), np.empty(moved.shape, np.int8)
    for part in parts(channels, len(moved)):
        columns = moved[:, part].astype(np.float32, copy=False)
        columns = columns if reciprocals is None else columns / reciprocals[:, None]
        step[part] = steps(columns, paired=matrix.ndim == 2, both=both)
        values[:, part] = np.rint(columns / step[part])
    shaped = values.reshape(*np.delete(matrix.shape, axis), channels)
    return Int8Matrix(np.ascontiguousarray(np.moveaxis(shaped, -1, axis)), step, axis)


def parts(count: int, size: int) -> Iterator[slice]:
    """Parts of ``count`` columns, or rows, of ``size`` numbers, so that arrays beside a large matrix are small.

    Each begins at an even one: neighbours that the kernels add stay together.
    """
    length = max(2, _AT_ONCE // max(1, size) // 2 * 2)
    for start in range(0, count, length):
        yield slice(start, start + length)


def steps(columns: Float32Array, *, paired: bool, both: bool) -> Float32Array:
    """The scale of each column, under the limit on pairs within it, and with ``both`` across columns.

    Two weights still to be rounded move by half a step each, so one is left."""
    step = np.abs(columns).max(axis=0) / 127.0
    if paired:
        step = np.maximum(step, pair_sums(columns).max(axis=0, initial=0) / (LARGEST_PAIR - 1.0))
    step = np.where(step > 0, step, np.float32(1.0)).astype(np.float32)
    return _widened(columns, step) if paired and both else step


def pair_sums(rows: NDArray[_Number]) -> NDArray[_Number]:
    """[rows // 2, columns]: sums of two neighbouring rows, of the sign with the larger one. Kernels add such pairs."""
    first, second = rows[: len(rows) // 2 * 2 : 2], rows[1::2]  # (a reduction over an axis of 2 is ten times slower)
    above = np.maximum(first, 0) + np.maximum(second, 0)
    sums: NDArray[_Number] = np.maximum(above, -(np.minimum(first, 0) + np.minimum(second, 0)))
    return sums


def _widened(rows: Float32Array, step: Float32Array) -> Float32Array:
    """Larger steps for two neighbouring columns whose integers would pass the limit when the matrix is transposed."""
    sums = pair_sums((rows / step).T).max(axis=1, initial=0)
    factor = np.ones_like(step)
    factor[: 2 * len(sums)] = np.repeat(sums / (LARGEST_PAIR - 1.0), 2)
    widened: Float32Array = step * np.maximum(factor, 1)
    return widened


def column_sums(values: NDArray[np.int8], scale: Float32Array, axis: int) -> Float32Array:
    """The sum of each column of a matrix of integers, times its scale; ``axis`` is that of the columns."""
    others = tuple(other for other in range(values.ndim) if other != axis)  # more than one in a kernel
    sums: NDArray[np.float64] = values.sum(axis=others, dtype=np.float64) * scale
    return sums.astype(np.float32)


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Numbers of 4 bits, two to a byte along the last axis, the first in the low half."""
    return values[..., 0::2] | np.left_shift(values[..., 1::2], 4, dtype=np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The numbers of ``pack_nibbles``."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def from_blocks(values: NDArray[np.uint8], scales: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    """The matrix [rows, width] that blocks stand for; as ``Blocks`` has them."""
    steps = unpack_nibbles(values).astype(np.float64) - 8
    matrix: NDArray[np.float64] = (steps * scales[..., None]).reshape(len(values), -1)[:, :width]
    return matrix


def to_blocks(matrix: Float32Array, block: int) -> Blocks:
    """Round the rows of ``matrix`` to 4 bits, with a scale for every ``block`` elements, chosen for the least error."""
    made = [_rows_to_blocks(matrix[part], block) for part in parts(*matrix.shape)]
    return Blocks(*(np.concatenate(arrays) for arrays in zip(*made, strict=True)))


def _rows_to_blocks(matrix: Float32Array, block: int) -> tuple[NDArray[np.uint8], Float32Array]:
    rows, width = matrix.shape
    blocks = -(-width // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :width] = matrix
    grouped = padded.reshape(rows, blocks, block)
    scales = best_scales(grouped)
    steps = (np.clip(np.rint(grouped / scales[..., None]), -8, 7) + 8).astype(np.uint8)
    return pack_nibbles(steps), scales


def best_scales(grouped: Float32Array) -> Float32Array:
    """Per block, of some scales up to largest / 8, that of the least squared error; its sign makes the largest a -8."""
    at = np.abs(grouped).argmax(axis=-1)[..., None]
    full = -np.take_along_axis(grouped, at, axis=-1)[..., 0] / 8.0
    full = np.where(full == 0, np.float32(1.0), full).astype(np.float32)
    best, least = full, np.full(full.shape, np.inf, np.float32)
    for fraction in SHRINKAGE:
        scale = (full * np.float32(fraction)).astype(np.float32)
        rounded = np.clip(np.rint(grouped / scale[..., None]), -8, 7) * scale[..., None]
        error = np.square(rounded - grouped).sum(axis=-1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best
