"""Read ``.parquet`` files, with pyarrow (``edgepeft[tables]``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepeft_runtime.errors import CannotReadData, MissingExtra

_ROWS = 1024
"""Rows converted to Python's values at a time."""


@dataclass(frozen=True)
class _Parquet:
    """The rows of a file with their numbers, read each time that they are iterated over."""

    path: Path
    file: Any

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, object]]]:
        number = 0
        try:
            for batch in self.file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (OSError, ValueError) as failure:  # pyarrow's own are of these classes
            raise _unreadable(self.path, failure) from None


def parquet_rows(path: Path) -> _Parquet:
    """Return the rows of a file.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtra(
            "Reading .parquet needs the package pyarrow, which is not installed.",
            context=None,
            hint="pip install 'edgepeft[tables]', or write the table as .csv.",
        ) from None
    try:
        return _Parquet(path, ParquetFile(path))
    except (OSError, ValueError) as failure:
        raise _unreadable(path, failure) from None


def _unreadable(path: Path, failure: Exception) -> CannotReadData:
    return CannotReadData(
        f"Cannot read {path}.", context=f"pyarrow: {failure}", hint="write the file again, or as .csv."
    )
