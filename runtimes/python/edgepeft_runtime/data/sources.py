"""Sources of batches by epoch: data sets, frames, batches that come ready-made, streams of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.data.datasets import Arrays, Dataset, no_data, read_npz
from edgepeft_runtime.data.items import Columns, Items, SupportsItems, chosen, column_names, stacked
from edgepeft_runtime.data.named import Ordered, array_of, by_name, text_in_batch
from edgepeft_runtime.errors import DataChanged, DataUsedUp, UnknownData

Data = (
    Dataset
    | SupportsItems
    | Mapping[str, Any]
    | Ordered
    | str
    | Path
    | Iterable[Batch]
    | Callable[[int], Iterable[Batch]]
)
"""The data that ``fit`` and ``evaluate`` accept: see ``edgepeft_runtime.Trainer.fit``."""

SHUFFLE_BUFFER = 1024
"""Examples of a stream among which the next one is drawn. A stream in order of its classes needs another order."""


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


def source_of(data: Data, manifest: Manifest, batch_size: int, *, shuffle_seed: int | None = None) -> Source:
    """Return the source of any kind of data.

    Args:
        data: see ``edgepeft_runtime.Trainer.fit``. Batches that come ready-made keep their size and order.
        manifest: names the inputs and labels, and says whether a value is an example or a batch.
        batch_size: examples in a batch; the last one of an epoch may be smaller.
        shuffle_seed: seed by which each epoch shuffles examples; ``None`` keeps their order.

    Raises:
        DataError: the data is of an unknown kind, or is empty.
    """
    dataset = _dataset(data, manifest)
    if dataset is not None:
        return _Rows(dataset, batch_size, shuffle_seed)
    if callable(data) or isinstance(data, Iterable):
        return _Stream(data, manifest, batch_size, shuffle_seed)
    raise UnknownData(
        f"Cannot read batches from a {type(data).__name__}.",
        context=None,
        hint="pass arrays by name, an .npz file, a frame, a data set, a DataLoader, or batches.",
    )


def _dataset(data: Any, manifest: Manifest) -> Dataset | None:
    """Return data whose examples have an index as a data set; ``None`` for batches and streams."""
    if isinstance(data, str | Path):
        return _file(Path(data))
    if isinstance(data, Mapping):
        return Arrays(data)
    names = column_names(data)
    if names is not None:
        return Columns(data, names, manifest)
    if hasattr(data, "column_names") and hasattr(data, "__len__"):  # datasets.Dataset, which has a batch() of its own
        return Items(data, manifest)
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple) and data and not isinstance(data[0], Mapping | tuple | list | str):
        return Arrays(by_name(data, manifest))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or hasattr(data, "shape"):
        return None
    if isinstance(data, Sequence) and (not data or not is_example(data[0], manifest)):
        return None
    return Items(data, manifest)


def _file(path: Path) -> Dataset:
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    kind = "a folder" if path.is_dir() else f"a file with the suffix {path.suffix!r}" if path.suffix else "a file"
    raise UnknownData(
        f"The trainer reads .npz files, and {path} is {kind}.",
        context=None if path.exists() else "there is nothing at this path.",
        hint="tables, texts and images are read for the bundle: "
        f"from edgepeft.data import load; trainer.fit(load({str(path)!r}, trainer.bundle)).",
    )


def is_example(values: object, manifest: Manifest) -> bool:
    """Whether values are one example, not a batch: the first input lacks the axis of the examples.

    Raises:
        BatchError: the values contain text.
    """
    first = manifest.inputs[0]
    if isinstance(values, str):
        raise text_in_batch(values)
    try:
        value = by_name(values, manifest).get(first.name)
        if isinstance(value, str):
            raise text_in_batch(values)
        return value is not None and array_of(value).ndim == len(first.shape) - 1
    except (ValueError, TypeError):
        return False


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
            raise no_data("the data set has length 0.")

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        order = np.arange(self.examples)
        if self._seed is not None:
            order = np.random.default_rng([self._seed, epoch]).permutation(self.examples)
        for start in range(skip * self._batch_size, self.examples, self._batch_size):
            yield self._dataset.batch(order[start : start + self._batch_size])


class _Stream:
    """Batches or examples in an order of their own. Each epoch calls the function, or iterates over the data, again."""

    examples = None
    fingerprint = None

    def __init__(
        self,
        data: Iterable[Any] | Callable[[int], Iterable[Any]],
        manifest: Manifest,
        batch_size: int,
        shuffle_seed: int | None,
    ) -> None:
        self._data = data
        self._manifest = manifest
        self._batch_size = batch_size
        self._seed = shuffle_seed
        self.count = len(data) if isinstance(data, Sized) else None
        self.once = isinstance(data, Iterator)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        if self.once and epoch > 0:
            raise DataUsedUp(
                "A generator can be read only once, so the second epoch has no batches.",
                context=f"epoch {epoch + 1}",
                hint="pass a list of batches, or a function from the epoch to its batches.",
            )
        batches = self._batches(epoch)
        skipped = sum(1 for _ in islice(batches, skip))
        if skipped < skip:
            raise DataChanged(
                "The data has fewer batches than the run has already used.",
                context=f"epoch {epoch + 1}: {skip} used, {skipped} in the data",
                hint="resume with the data that the run was started with; pass a new generator, not a partly read one.",
            )
        return batches

    def _batches(self, epoch: int) -> Iterator[Batch]:
        values = iter(self._data(epoch) if callable(self._data) else self._data)
        first = next(values, None)
        if first is None:
            return iter(())
        values = chain([first], values)
        if self.count is not None or not is_example(first, self._manifest):
            return values
        rng = None if self._seed is None else np.random.default_rng([self._seed, epoch])
        return self._grouped(values if rng is None else _shuffled(values, rng))

    def _grouped(self, examples: Iterator[Any]) -> Iterator[Batch]:
        names: dict[str, str] = {}
        while group := [by_name(example, self._manifest) for example in islice(examples, self._batch_size)]:
            names = names or chosen(list(group[0]), self._manifest)
            yield stacked(group, names, self._manifest)


def _shuffled(examples: Iterator[Any], rng: np.random.Generator) -> Iterator[Any]:
    """Yield examples, each drawn from a buffer of the next ones."""
    buffer = list(islice(examples, SHUFFLE_BUFFER))
    for example in examples:
        row = int(rng.integers(len(buffer)))
        yield buffer[row]
        buffer[row] = example
    yield from (buffer[row] for row in rng.permutation(len(buffer)))
