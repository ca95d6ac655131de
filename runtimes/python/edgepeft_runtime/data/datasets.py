"""Sources of batches: arrays, ``.npz`` files, custom data sets, lists and streams of batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.errors import (
    CannotReadData,
    DataChanged,
    DataError,
    DataUsedUp,
    DifferentLengths,
    NoData,
    UnknownData,
)
from edgepeft_runtime.files import npy
from edgepeft_runtime.files.tensorfile import Array


@runtime_checkable
class Dataset(Protocol):
    """Examples by index, so that they can be shuffled."""

    def __len__(self) -> int:
        """The number of examples."""

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the examples at these indices as arrays by name."""


Data = Dataset | Mapping[str, Any] | str | Path | Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""A data set, arrays by name, an ``.npz`` file, batches, or a function from the epoch (0, 1, …) to batches."""


class Arrays:
    """A data set of arrays. The first axis of each array is that of the examples.

    Raises:
        DataError: there are no arrays or no examples, or the arrays differ in length.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays: dict[str, Array] = {name: np.asarray(array) for name, array in arrays.items()}
        lengths = {name: len(array) if array.ndim else 0 for name, array in self._arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DifferentLengths(
                "The arrays of a data set must have the same length.",
                context=", ".join(f"{name}: {length}" for name, length in lengths.items()),
                hint="the first axis of every array must be that of the examples.",
            )
        self._length = max(lengths.values(), default=0)
        if self._length == 0:
            raise _no_data("the arrays contain no examples." if lengths else "there are no arrays.")

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


class Source(Protocol):
    """Batches by epoch. The same epoch always yields the same batches."""

    @property
    def examples(self) -> int | None:
        """Examples in an epoch, if known."""

    @property
    def count(self) -> int | None:
        """Batches in an epoch, if known."""

    @property
    def fingerprint(self) -> str | None:
        """A checksum that differs for other data, if known."""

    @property
    def once(self) -> bool:
        """Whether the batches can be read only once."""

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (counted from 0), without the first ``skip``."""


def source_of(data: Data, batch_size: int, *, shuffle_seed: int | None = None) -> Source:
    """Return the source of any kind of data.

    Args:
        data: see :data:`Data`. Batches that come ready-made keep their size and order.
        batch_size: examples in a batch; the last one of an epoch may be smaller.
        shuffle_seed: seed by which each epoch shuffles a data set; ``None`` keeps its order.
    """
    if isinstance(data, str | Path):
        data = read_npz(data)
    elif isinstance(data, Mapping):
        data = Arrays(data)
    if isinstance(data, Dataset):
        return _Rows(data, batch_size, shuffle_seed)
    if callable(data) or isinstance(data, Iterable):
        return _Stream(data)
    raise UnknownData(
        f"Cannot read batches from a {type(data).__name__}.",
        context=None,
        hint="pass arrays by name, an .npz file, a data set (__len__ and batch), or batches.",
    )


class _Rows:
    """Mini-batches of a data set, in an order that depends only on the seed and the epoch."""

    def __init__(self, dataset: Dataset, batch_size: int, shuffle_seed: int | None) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = shuffle_seed
        self.once = False
        self.examples = len(dataset)
        self.count = -(-self.examples // batch_size)
        self.fingerprint = dataset.fingerprint() if isinstance(dataset, Arrays) else None
        if self.examples == 0:
            raise _no_data("the data set has length 0.")

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        order = np.arange(self.examples)
        if self._seed is not None:
            order = np.random.default_rng([self._seed, epoch]).permutation(self.examples)
        for start in range(skip * self._batch_size, self.examples, self._batch_size):
            yield self._dataset.batch(order[start : start + self._batch_size])


class _Stream:
    """Batches that come ready-made. Each epoch calls the function, or iterates over the data, again."""

    examples = None
    fingerprint = None

    def __init__(self, data: Iterable[Batch] | Callable[[int], Iterable[Batch]]) -> None:
        self._data = data
        self.count = len(data) if isinstance(data, Sized) else None
        self.once = isinstance(data, Iterator)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        if self.once and epoch > 0:
            raise DataUsedUp(
                "A generator can be read only once, so the second epoch has no batches.",
                context=f"epoch {epoch + 1}",
                hint="pass a list of batches, or a function from the epoch to its batches.",
            )
        batches = iter(self._data(epoch) if callable(self._data) else self._data)
        skipped = sum(1 for _ in islice(batches, skip))
        if skipped < skip:
            raise DataChanged(
                "The data has fewer batches than the run has already used.",
                context=f"epoch {epoch + 1}: {skip} used, {skipped} in the data",
                hint="resume with the data that the run was started with; pass a new generator, not a partly read one.",
            )
        return batches


def _no_data(context: str) -> DataError:
    return NoData("The data set is empty.", context=context, hint="pass at least one example.")
