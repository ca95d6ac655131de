"""Data sets: examples by index. Arrays, ``.npz`` files, and classes of one's own."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.data.batch import NamedBatch
from edgepeft_runtime.data.named import array_of
from edgepeft_runtime.errors import CannotReadData, DifferentLengths, NoData
from edgepeft_runtime.files import npy
from edgepeft_runtime.files.tensorfile import Array


@runtime_checkable
class Dataset(Protocol):
    """Examples by index, so that they can be shuffled."""

    def __len__(self) -> int:
        """The number of examples."""

    def batch(self, rows: NDArray[np.int64]) -> NamedBatch:
        """Return the examples at these indices as arrays by name."""


class Arrays:
    """A data set of arrays. The first axis of each array is that of the examples.

    Raises:
        DataError: there are no arrays or no examples, or the arrays differ in length.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays: dict[str, Array] = {name: array_of(array) for name, array in arrays.items()}
        lengths = {name: len(array) if array.ndim else 0 for name, array in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DifferentLengths(
                "The arrays of a data set must have the same length.",
                context=", ".join(f"{name}: {length}" for name, length in lengths.items()),
                hint="the first axis of every array must be that of the examples.",
            )
        self._length = max(lengths.values(), default=0)
        if self._length == 0:
            raise no_data("the arrays contain no examples." if lengths else "there are no arrays.")

    def __len__(self) -> int:
        return self._length

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return copies of the examples at these indices."""
        return {name: array[rows] for name, array in self._arrays.items()}

    def fingerprint(self) -> str:
        """Return a checksum over dtypes, shapes and some of the rows, which differs for most other data."""
        rows = np.linspace(0, len(self) - 1, min(len(self), 64)).astype(np.int64)
        checksum = 0
        for name, array in sorted(self._arrays.items()):
            checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
            checksum = zlib.crc32(array[rows].tobytes(), checksum)
        return f"{checksum:08x}"


def read_npz(path: str | Path) -> Arrays:
    """Read the arrays of an ``.npz`` file, as ``numpy.savez`` writes it. Pickled objects are never loaded.

    Raises:
        DataError: the file is missing, damaged, of another format, or contains Python objects.
    """
    try:
        arrays = npy.read_npz(path)
    except (OSError, ValueError, MemoryError) as failure:
        raise CannotReadData(
            f"Cannot read the data file {path}.",
            context=str(failure) or type(failure).__name__,
            hint="write it with numpy.savez(path, input=..., label=...), with arrays of numbers only.",
        ) from failure
    return Arrays(arrays)


def no_data(context: str) -> NoData:
    """Return the error of a data set without examples."""
    return NoData("The data set is empty.", context=context, hint="pass at least one example.")
