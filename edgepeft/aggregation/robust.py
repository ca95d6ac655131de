"""Compute medians and trimmed means per coordinate, from all updates at once, a block of coordinates at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from edgepeft.aggregation.combiners import Result, put_sparse
from edgepeft.aggregation.errors import ChangedFile
from edgepeft.aggregation.incoming import AdapterValues, Incoming, Start
from edgepeft.aggregation.pairs import Float64s
from edgepeft.aggregation.settings import Robust
from edgepeft.aggregation.sparse import EMPTY, Indices, add_sparse, on_indices

BLOCK_BYTES = 2**27
"""Memory for the values of a block of coordinates. More updates mean smaller blocks and more passes."""


@dataclass(frozen=True)
class _Piece:
    """A run of coordinates of one tensor."""

    name: str
    start: int
    stop: int


def combine(incoming: Incoming, start: Start, robust: Robust, devices: int) -> Result:
    """Return the statistic of every coordinate. The updates are read once for each block of coordinates.

    Args:
        incoming: Updates, all valid by an earlier pass.
        start: The start of the round.
        robust: The statistic.
        devices: Number of updates.
    """
    unions = _unions(incoming, start)
    sizes = {name: array.size for name, array in start.values.whole.items()} | {
        name: indices.size for name, indices in unions.items()
    }
    results = {name: np.empty(size) for name, size in sizes.items()}
    cut = robust.cut(devices)
    for block in _blocks(sizes, max(1, BLOCK_BYTES // (8 * devices))):
        columns = _columns(incoming, devices, block, unions)
        for piece, values in zip(block, np.split(_statistic(columns, cut), _ends(block)), strict=True):
            results[piece.name][piece.start : piece.stop] = values
    return _result(results, start, unions)


def _unions(incoming: Incoming, start: Start) -> dict[str, Indices]:
    """Return all indices that any device changed, by sparse tensor."""
    if not start.values.sparse:
        return {}
    unions = dict.fromkeys(start.values.sparse, EMPTY)
    for item in incoming:
        unions = {name: add_sparse(union, item.values.sparse[name], 0.0) for name, union in unions.items()}
    return {name: union[0] for name, union in unions.items()}


def _blocks(sizes: Mapping[str, int], most: int) -> Iterator[list[_Piece]]:
    """Yield all coordinates in blocks of at most ``most``."""
    block: list[_Piece] = []
    room = most
    for name, size in sizes.items():
        start = 0
        while start < size:
            stop = min(size, start + room)
            block.append(_Piece(name, start, stop))
            room, start = room - (stop - start), stop
            if room == 0:
                yield block
                block, room = [], most
    if block:
        yield block


def _columns(incoming: Incoming, devices: int, block: list[_Piece], unions: Mapping[str, Indices]) -> Float64s:
    """Return the values of a block [coordinates, devices]."""
    columns, count = np.empty((sum(piece.stop - piece.start for piece in block), devices)), 0
    for count, item in enumerate(incoming, 1):
        columns[:, count - 1] = _row(item.values, block, unions)
    if count != devices:
        raise ChangedFile(
            "A valid update was changed during the aggregation.",
            context="; ".join(map(str, incoming.refused)),
            hint="aggregate copies that nobody writes to, as pull makes them.",
        )
    return columns


def _row(values: AdapterValues, block: list[_Piece], unions: Mapping[str, Indices]) -> Float64s:
    parts = [
        (
            on_indices(values.sparse[piece.name], unions[piece.name])
            if piece.name in unions
            else values.whole[piece.name].reshape(-1)
        )[piece.start : piece.stop]
        for piece in block
    ]
    return np.concatenate(parts)


def _statistic(columns: Float64s, cut: int) -> Float64s:
    """Return the mean of each coordinate without the ``cut`` smallest and largest values."""
    columns.sort(axis=1)
    middle: Float64s = columns[:, cut : columns.shape[1] - cut].mean(axis=1)
    return middle


def _ends(block: list[_Piece]) -> list[int]:
    return list(accumulate(piece.stop - piece.start for piece in block))[:-1]


def _result(results: Mapping[str, Float64s], start: Start, unions: Mapping[str, Indices]) -> Result:
    result = Result({name: results[name].reshape(array.shape) for name, array in start.values.whole.items()})
    for spec in start.bundle.manifest.sparse:
        count = start.adapter[spec.values].size
        put_sparse((unions[spec.tensor], results[spec.tensor]), spec, count, False, result)
    return result
