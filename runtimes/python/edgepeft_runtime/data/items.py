"""Data sets of examples: map-style data sets of torch, ``datasets.Dataset``, lists of examples, columns of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec, TensorSpec
from edgepeft_runtime.data.datasets import no_data
from edgepeft_runtime.data.named import array_of, by_name, text_in_batch
from edgepeft_runtime.errors import DifferentLengths, MissingColumn
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice

_IGNORED = -100
"""Label of ignored positions in torch and transformers."""


class SupportsItems(Protocol):
    """Examples by index: ``torch.utils.data.Dataset``, ``datasets.Dataset``, a list."""

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, row: int, /) -> Any:
        """One example: values by name, or in the manifest's order."""


class Items:
    """A data set of examples that are read one at a time, so that it may be larger than memory.

    Sequences of tokens of different lengths are padded to the longest of their batch, where the bundle accepts text.

    Args:
        items: examples: values by name, or tuples in the manifest's order.
        manifest: names the inputs and labels.

    Raises:
        BatchError: an example has other values than the bundle accepts, or contains text.
        DataError: there are no examples, or the arrays of a batch differ in shape.
    """

    def __init__(self, items: SupportsItems, manifest: Manifest) -> None:
        self._items = items
        self._manifest = manifest
        if len(items) == 0:
            raise no_data("the data set has length 0.")
        first = by_name(items[0], manifest)
        self._names = chosen(list(first), manifest)

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the examples at these indices."""
        return stacked([by_name(self._items[int(row)], self._manifest) for row in rows], self._names, self._manifest)


class Columns:
    """A data set of the columns of a frame (pandas, polars) whose names are those of inputs and labels.

    Raises:
        DataError: a column is missing, or there are no examples.
    """

    def __init__(self, frame: Any, names: Sequence[str], manifest: Manifest) -> None:
        self._manifest = manifest
        self._names = chosen(names, manifest)
        self._columns = {column: np.asarray(frame[column]) for column in self._names.values()}
        self._length = len(frame)
        if self._length == 0:
            raise no_data("the frame has no rows.")

    def __len__(self) -> int:
        return self._length

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the examples at these indices."""
        examples = [{name: column[row] for name, column in self._columns.items()} for row in rows]
        return stacked(examples, self._names, self._manifest)


def column_names(data: object) -> list[str] | None:
    """Return the names of a frame's columns (pandas, polars, pyarrow); ``None`` for anything else."""
    names = getattr(data, "columns", None)
    if names is None or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        return None
    names = getattr(data, "column_names", names)  # of pyarrow, where columns are the columns themselves
    return [str(name) for name in names]


def chosen(present: Sequence[str], manifest: Manifest) -> dict[str, str]:
    """Return the column of each input and label, and report the columns that are not used.

    The only label may be called ``label`` where the bundle says ``labels``, as ``transformers`` renames it.

    Raises:
        DataError: a column is missing.
    """
    specs = (*manifest.inputs, *manifest.labels)
    names = {spec.name: spec.name for spec in specs if spec.name in present}
    missing = [spec.name for spec in specs if spec.name not in names]
    if missing == ["labels"] and "label" in present:
        names["labels"] = "label"
        notice("the column 'label' is used as 'labels'.")
    elif missing:
        raise MissingColumn(
            f"The data has no column {', '.join(map(repr, missing))}.",
            context=f"columns: {some(list(present), 20) or 'none'}; the bundle accepts "
            f"{', '.join(repr(spec.name) for spec in specs)}",
            hint="name the columns as the bundle does; or, for texts, numbers by column and names of classes: "
            "trainer.fit(edgepeft.data.load(data, trainer.bundle)).",
        )
    unused = [name for name in present if name not in names.values()]
    if unused:
        notice(f"columns that are not used: {some(unused)}.")
    return names


def stacked(examples: Sequence[Mapping[str, Any]], names: Mapping[str, str], manifest: Manifest) -> dict[str, Array]:
    """Return a batch of examples; ``names`` maps an input or label to its name in the examples."""
    specs = (*manifest.inputs, *manifest.labels)
    return {spec.name: _stacked([example[names[spec.name]] for example in examples], spec, manifest) for spec in specs}


def _stacked(values: Sequence[object], spec: TensorSpec, manifest: Manifest) -> Array:
    if any(isinstance(value, str) for value in values):
        raise text_in_batch(values[0])
    arrays = [array_of(value) for value in values]
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    fill = _padding(spec, manifest)
    if fill is None or any(array.ndim != 1 for array in arrays):
        raise DifferentLengths(
            f"The examples differ in the shape of {spec.name!r}.",
            context=", ".join(str(list(array.shape)) for array in arrays[:6]),
            hint="pad them to one shape, or pass batches, such as those of a DataLoader with a collate_fn.",
        )
    width = max(map(len, arrays))
    return np.stack([np.pad(array, (0, width - len(array)), constant_values=fill) for array in arrays])


def _padding(spec: TensorSpec, manifest: Manifest) -> int | None:
    """Return the value that pads a sequence of tokens; ``None`` where the bundle does not say."""
    text = manifest.text
    if text is None:
        return None
    if isinstance(spec, LabelSpec):
        return _IGNORED if spec.ignore_index is None else spec.ignore_index
    return {"ids": text.pad_id}.get(text.fields[spec.name], 0) if spec.name in text.fields else None
