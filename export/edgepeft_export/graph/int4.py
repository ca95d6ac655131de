"""A float matrix as 4-bit codes that a graph expands to int8, with one scale for each output.

A group of inputs of one output has a step and perhaps an offset, both whole numbers: an int8 weight is
``code · step / 8 + offset``, rounded, and the weight is the int8 one times the output's scale. So the codes have a step
per group, as other 4-bit formats have it, and the product is that of int8. (QServe calls this progressive groups: Lin
et al., MLSys 2025.) A matrix that lies on a 4-bit grid already, as in a GGUF file of Q4_0 or Q4_1, keeps its codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepeft_export.graph.rounding import LARGEST_PAIR, Float32Array, best_scales, pair_sums, parts

Int8Array = NDArray[np.int8]

EIGHTHS = 8
"""A step counts eighths of an int8 unit: a code of -8 at the largest step, 127, is -127."""

LARGEST = 127
"""Largest size of an int8 weight, of a step, and of an offset."""

_MARGIN = 1.02
"""A scale is widened by so much more than neighbours pass the limit: their numbers are rounded again."""

_ON_GRID = 2e-3
"""Largest distance, in steps, of a number that lies on a grid. Files have the grid in 16 bits and its numbers in 32."""


@dataclass(frozen=True)
class Int4Matrix:
    """A matrix [inputs, outputs] whose inputs are padded to whole groups, of an even number.

    Attributes:
        bytes: int8 [pairs, group, outputs]: in the low four bits the code + 8 of an input of the first half of the
            groups, in the high four bits, in two's complement, that of the second half.
        steps: int8 [2 pairs, 1, outputs].
        offsets: int8, of the shape of ``steps``; ``None`` where all are zero.
        scale: [outputs].
        inputs: without the padding.
    """

    bytes: Int8Array
    steps: Int8Array
    offsets: Int8Array | None
    scale: Float32Array
    inputs: int

    @property
    def group(self) -> int:
        """Inputs per step."""
        return int(self.bytes.shape[1])

    def integers(self) -> Int8Array:
        """The int8 weights, [inputs, outputs], as a graph expands them."""
        codes = np.concatenate([(self.bytes & 15) - 8, self.bytes >> 4])
        units = np.rint(codes * (self.steps.astype(np.float32) / EIGHTHS))
        if self.offsets is not None:
            units = np.clip(units + self.offsets, -LARGEST - 1, LARGEST)
        return units.astype(np.int8).reshape(-1, self.bytes.shape[2])[: self.inputs]

    def matrix(self) -> Float32Array:
        """The floats that it stands for, [inputs, outputs]."""
        return self.integers() * self.scale


@dataclass(frozen=True)
class Grid:
    """Groups of a matrix [outputs, inputs] on 4-bit grids: ``codes · step + middle``.

    Attributes:
        codes: [outputs, groups, group], -8 to 7.
        step: [outputs, groups], of either sign.
        middle: [outputs, groups]; ``None`` where all are zero.
    """

    codes: Int8Array
    step: Float32Array
    middle: Float32Array | None


def to_int4(matrix: Float32Array, group: int) -> Int4Matrix:
    """Round a matrix [inputs, outputs] to 4 bits, by groups of inputs; one that lies on a grid keeps its codes.

    Of the int8 weights, the sums of neighbours along both axes stay within the limit of an int8 matrix.
    """
    rows = np.ascontiguousarray(matrix.T)
    kept = grids_of(rows, group)
    made = [_within(grid, len(matrix)) for grid in (kept if kept is not None else _rounded(rows, group))]
    offsets = [part.offsets for part in made if part.offsets is not None]
    return Int4Matrix(
        np.concatenate([part.bytes for part in made], axis=-1),
        np.concatenate([part.steps for part in made], axis=-1),
        np.concatenate(offsets, axis=-1) if offsets else None,
        np.concatenate([part.scale for part in made]),
        len(matrix),
    )


def _within(grid: Grid, inputs: int) -> Int4Matrix:
    """In whole numbers, with larger scales where neighbours would pass the limit."""
    scale = _scales(grid)
    while True:
        four = _matrix_of(grid, scale, inputs)
        integers = four.integers().astype(np.int16)
        factor = pair_sums(integers).max(axis=0, initial=0) / LARGEST_PAIR
        beside = np.repeat(pair_sums(integers.T).max(axis=1, initial=0) / LARGEST_PAIR, 2)
        factor[: len(beside)] = np.maximum(factor[: len(beside)], beside)
        if factor.max(initial=0) <= 1:
            return four
        scale = np.where(factor > 1, scale * factor * _MARGIN, scale).astype(np.float32)


def _rounded(rows: Float32Array, group: int) -> Iterator[Grid]:
    """The steps of least squared error, with zero as a value of each grid."""
    outputs, inputs = rows.shape
    groups = -(-inputs // group)
    for part in parts(outputs, inputs):
        padded = np.zeros((len(rows[part]), groups * group), np.float32)
        padded[:, :inputs] = rows[part]
        grouped = padded.reshape(-1, groups, group)
        largest = np.abs(step := best_scales(grouped)).max(axis=1, keepdims=True)
        step = _whole(step, largest / LARGEST)  # the codes are those of the step that is stored
        codes = np.rint(grouped / np.where(step == 0, 1, step)[..., None])
        yield Grid(np.clip(codes, -8, 7).astype(np.int8), step, None)


def _whole(values: Float32Array, unit: Float32Array) -> Float32Array:
    rounded: Float32Array = np.rint(values / unit) * unit
    return rounded


def _scales(grid: Grid) -> Float32Array:
    """The smallest scale of each output with which all numbers, and all steps, are within int8."""
    middle = np.float32(0) if grid.middle is None else grid.middle
    edges = [np.abs(middle + code * grid.step).max(axis=1) for code in (-8, 7)]
    scale = np.maximum(np.maximum(*edges), EIGHTHS * np.abs(grid.step).max(axis=1)) / LARGEST
    return np.where(scale > 0, scale, 1).astype(np.float32)


def _matrix_of(grid: Grid, scale: Float32Array, inputs: int) -> Int4Matrix:
    groups = grid.codes.shape[1]
    pairs = -(-groups // 2)
    padding = ((0, 0), (0, 2 * pairs - groups))
    steps = np.rint(EIGHTHS * grid.step / scale[:, None]).astype(np.int8)
    codes = np.pad(grid.codes, (*padding, (0, 0))).transpose(1, 2, 0)
    packed = np.left_shift(codes[pairs:], 4) | (codes[:pairs] + 8)
    offsets = None
    if grid.middle is not None:
        offsets = np.pad(_offsets(grid.step, grid.middle, scale[:, None], steps), padding).T[:, None]
    return Int4Matrix(packed, np.pad(steps, padding).T[:, None], offsets, scale, inputs)


def _offsets(step: Float32Array, middle: Float32Array, scale: Float32Array, steps: Int8Array) -> Int8Array:
    """The middles in int8 units. Zero stays zero where it is on the grid: pruned weights stay pruned."""
    zero = -middle / np.where(step == 0, 1, step)  # its code
    exact = (np.abs(zero - np.rint(zero)) < _ON_GRID) & (np.abs(zero) <= 8) & (step != 0)
    units = np.where(exact, -np.rint(np.rint(zero) * steps / EIGHTHS), np.rint(middle / scale))
    return units.astype(np.int8)


def grids_of(rows: Float32Array, group: int) -> list[Grid] | None:
    """The grids that a matrix [outputs, inputs] lies on, in parts of its rows; ``None`` where it lies on none.

    They are recovered from the numbers alone, so the source may have renamed or reordered the rows. Noise does not lie
    on a grid: it would have to come within a thousandth of a step 16 times for each step.
    """
    if rows.shape[1] % group or _grid(rows[:4], group) is None:
        return None
    found: list[Grid] = []
    for part in parts(*rows.shape):
        grid = _grid(rows[part], group)
        if grid is None:
            return None
        found.append(grid)
    return found


def _grid(rows: Float32Array, group: int) -> Grid | None:
    """For each group, a grid of at most 15 steps from its smallest number to its largest."""
    grouped = rows.reshape(-1, group)
    low, span = grouped.min(axis=1), np.ptp(grouped, axis=1)
    step, codes = np.zeros_like(span), np.zeros(grouped.shape, np.int8)
    left = np.flatnonzero(span)
    for steps in range(15, 0, -1):
        size = span[left] / np.float32(steps)
        exact = (grouped[left] - low[left, None]) / size[:, None]
        whole = np.rint(exact)
        fits = np.abs(exact - whole).max(axis=1, initial=0) < _ON_GRID
        step[left[fits]], codes[left[fits]] = size[fits], whole[fits]
        left = left[~fits]
    if left.size:
        return None
    shape = (len(rows), -1)
    step, middle = step.reshape(shape), (low + 8 * step).reshape(shape)
    return Grid((codes - 8).reshape(*step.shape, group), step, middle)
