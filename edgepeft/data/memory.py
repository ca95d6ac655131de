"""Rows of values from memory: data frames, lists of texts, of (text, label) pairs and of dicts, columns by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgepeft.data.errors import MixedRows
from edgepeft.data.records import Objects, Records
from edgepeft_runtime.data.items import column_names
from edgepeft_runtime.errors import DifferentLengths, NoData, UnknownData
from edgepeft_runtime.shown import quoted

SOURCE = "the data"
"""The name of data in memory, in messages."""


def rows_in_memory(data: Any, texts: Sequence[str], label: str) -> Records:
    """Return the rows of a frame, a ``datasets.Dataset``, a mapping of columns, or a list.

    Args:
        data: The rows. Those of a list are dicts, texts, or tuples: one value per text column, then the label.
        texts: Names of the text columns.
        label: Name of the label column.

    Raises:
        DataError: The data is of another kind, is empty, or its rows are of several kinds.
    """
    names = column_names(data)
    if names is not None:
        return _of_columns({name: _listed(data[name]) for name in names})
    if isinstance(data, Mapping):
        return _of_columns({str(name): _listed(column) for name, column in data.items()})
    if hasattr(data, "column_names") and hasattr(data, "__len__"):  # datasets.Dataset
        return Objects(SOURCE, _Numbered(data), "example")
    if not isinstance(data, Sequence) or isinstance(data, bytes):
        raise UnknownData(
            f"Cannot read examples from a {type(data).__name__}.",
            context=None,
            hint="give the path of a file, a data frame, or a list of texts, (text, label) pairs or dicts.",
        )
    if not data:
        raise NoData("The list of examples is empty.", context=None, hint="give at least one example.")
    return Objects(SOURCE, [(number, _row(number, row, texts, label)) for number, row in enumerate(data, 1)], "example")


class _Numbered:
    """The rows of a ``datasets.Dataset``, read each time that they are iterated over."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, object]]]:
        return iter(enumerate(self._rows, start=1))


def _of_columns(columns: Mapping[str, list[object]]) -> Records:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DifferentLengths(
            "The columns have different lengths.",
            context=", ".join(f"{name}: {length}" for name, length in lengths.items()),
            hint="give each column one value per example.",
        )
    if not columns or not all(columns.values()):
        raise NoData("The data has no rows.", context=f"columns: {', '.join(columns) or 'none'}", hint="give one.")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Objects(SOURCE, list(enumerate(rows, start=1)), "row")


def _listed(column: Any) -> list[object]:
    """Return the values of a column in Python's own types."""
    for name in ("to_list", "to_pylist", "tolist"):  # pandas and polars; pyarrow; numpy and torch
        if hasattr(column, name):
            return list(getattr(column, name)())
    return list(column)


def _row(number: int, row: object, texts: Sequence[str], label: str) -> Mapping[str, object]:
    if isinstance(row, Mapping):
        return row
    values = [row] if isinstance(row, str) else list(row) if isinstance(row, tuple | list) else []
    names = [*texts, label][: len(values)]
    if len(values) == len(names) >= len(texts):
        return dict(zip(names, values, strict=True))
    raise MixedRows(
        f"Example {number} is not a row of {', '.join(texts)} and {label}.",
        context=f"found {quoted(row)}",
        hint="give a text, a tuple of texts and a label, or a dict by the names of columns.",
    )
