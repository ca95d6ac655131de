"""Rows of named values from files (``.csv``, ``.tsv``, ``.jsonl``, ``.json``, each also ``.gz``; ``.parquet``)."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgepeft.data.errors import BadLine, NotUtf8
from edgepeft.data.tables.parquet import parquet_rows
from edgepeft_runtime.errors import CannotReadData, DataError, NoData
from edgepeft_runtime.files.unpacking import room
from edgepeft_runtime.names import did_you_mean
from edgepeft_runtime.notices import notice

Row = tuple[int, list[object]]
"""Number of the line or example, from 1, and the values of the requested columns."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


class Records(Protocol):
    """Rows of values by column.

    Attributes:
        source: Names the data in messages.
        columns: Names of the columns: the header, or the fields of the first row.
    """

    source: str
    columns: list[str]

    def rows(self, wanted: Sequence[str], fields: dict[str, None] | None = None) -> Iterator[Row]:
        """Yield the requested columns row by row, and add the names of all columns to ``fields``.

        Raises:
            DataError: A row is malformed, or lacks a column.
        """

    def error(self, number: int, message: str, context: str | None, hint: str) -> DataError:
        """Return the error of the row with this number."""


def suffix_of(path: Path) -> str:
    """Return the suffix that names the format, in lower case: that before ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_records(path: Path) -> Records:
    """Read a ``.parquet`` file, or a UTF-8 file, with or without a byte order mark, whose suffix is another of
    ``SUFFIXES``, and maybe ``.gz``.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or is not of its format.
    """
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return Objects(str(path), parquet_rows(path), "row")
    content = _decoded(path)
    if suffix == ".jsonl":
        return Objects(str(path), _Lines(path, content), "line")
    if suffix == ".json":
        return Objects(str(path), _listed(path, content), "example")
    return _Csv(path, content, "\t" if suffix == ".tsv" else None)


class _Csv:
    """The rows of a file with a header.

    Args:
        path: The file.
        content: Its text.
        separator: Separates the cells; ``None`` recognizes it by the header: that which makes most columns.
    """

    def __init__(self, path: Path, content: str, separator: str | None) -> None:
        self.source = str(path)
        self._content = content
        if separator is None:
            separator = max(_SEPARATORS, key=self._width)
            if separator != ",":
                notice(f"{path}: the columns are separated by {_SEPARATORS[separator]}.")
        self._separator = separator
        self.columns = self._header(separator)

    def rows(self, wanted: Sequence[str], fields: dict[str, None] | None = None) -> Iterator[Row]:
        """See ``Records``."""
        records = self._records(self._separator)
        line, names = next(records, (1, []))
        if not names:
            raise NoData(
                f"{self.source} is empty.", context=None, hint="give a header line and at least one line of data."
            )
        if fields is not None:
            fields.update(dict.fromkeys(self.columns))
        indices = [self._index(line, name) for name in wanted]
        for line, cells in records:
            if len(cells) != len(self.columns):
                raise self.error(
                    line,
                    f"The line has {len(cells)} cells, but the header has {len(self.columns)}.",
                    f"header: {', '.join(self.columns)}",
                    'put text with a separator or a line break in double quotes, and write a quote in it as "".',
                )
            yield line, [cells[index] for index in indices]

    def error(self, number: int, message: str, context: str | None, hint: str) -> DataError:
        """See ``Records``."""
        return BadLine(f"{self.source}, line {number}: {message}", context=context, hint=hint)

    def _width(self, separator: str) -> int:
        """Return how many columns a separator makes; 0 if the header is not well-formed with it."""
        try:
            return len(self._header(separator))
        except DataError:
            return 0

    def _header(self, separator: str) -> list[str]:
        return [name.strip() for name in next(self._records(separator), (1, []))[1]]

    def _records(self, separator: str) -> Iterator[tuple[int, list[str]]]:
        """Yield the records that are not blank, with the first line of each."""
        limit = csv.field_size_limit(max(csv.field_size_limit(), len(self._content)))
        reader = csv.reader(io.StringIO(self._content, newline=""), delimiter=separator, strict=True)
        try:
            start = 1
            for cells in reader:
                if cells:
                    yield start, cells
                start = reader.line_num + 1
        except csv.Error as failure:
            hint = 'put cells with line breaks or quotes in double quotes, and write a quote in them as "".'
            raise self.error(start, "The record is not well-formed CSV.", str(failure), hint) from None
        finally:
            csv.field_size_limit(limit)  # the limit applies to the whole process

    def _index(self, line: int, name: str) -> int:
        if self.columns.count(name) == 1:
            return self.columns.index(name)
        many = "are several columns" if name in self.columns else "is no column"
        raise self.error(
            line,
            f"There {many} {name!r}.",
            f"columns: {', '.join(self.columns)}",
            column_hint(name, self.columns, "in the first line"),
        )


class Objects:
    """Rows that are mappings: objects of JSON, or rows in memory.

    Args:
        source: Names the data in messages.
        objects: The rows with their numbers; iterated over several times.
        unit: What the numbers count: ``line`` or ``example``.
    """

    def __init__(self, source: str, objects: NumberedObjects, unit: str) -> None:
        self.source = source
        self._objects = objects
        self._unit = unit
        self.columns = [str(name) for name in next(iter(objects), (1, {}))[1]]

    def rows(self, wanted: Sequence[str], fields: dict[str, None] | None = None) -> Iterator[Row]:
        """See ``Records``."""
        for number, value in self._objects:
            if fields is not None:
                fields.update(dict.fromkeys(value))
            for name in wanted:
                if name not in value:
                    facts = f"fields: {', '.join(value)}"
                    raise self.error(number, f"There is no field {name!r}.", facts, column_hint(name, list(value)))
            yield number, [value[name] for name in wanted]

    def error(self, number: int, message: str, context: str | None, hint: str) -> DataError:
        """See ``Records``."""
        return BadLine(f"{self.source}, {self._unit} {number}: {message}", context=context, hint=hint)


class NumberedObjects(Protocol):
    """Mappings with their numbers, from 1."""

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, object]]]:
        """Yield number and mapping of each row."""


class _Lines:
    """The objects of a ``.jsonl`` file, parsed each time that they are iterated over."""

    def __init__(self, path: Path, content: str) -> None:
        self._path, self._content = path, content

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, object]]]:
        # splitlines would also split at the Unicode line separators that JSON allows inside strings.
        for line, record in enumerate(self._content.split("\n"), start=1):
            if record.strip():
                yield line, self._object(line, record)

    def _object(self, line: int, record: str) -> Mapping[str, object]:
        try:
            value = json.loads(record)
        except (ValueError, RecursionError) as failure:
            raise self._error(line, "not JSON", str(failure), "write one JSON object per line.") from None
        if not isinstance(value, dict):
            found = f"found {record.strip()[:60]}"
            raise self._error(line, "not a JSON object", found, 'write {"text": …, "label": …} on each line.')
        return value

    def _error(self, line: int, problem: str, context: str, hint: str) -> DataError:
        return BadLine(f"{self._path}, line {line}: The line is {problem}.", context=context, hint=hint)


def _listed(path: Path, content: str) -> list[tuple[int, Mapping[str, object]]]:
    """Return the objects of a ``.json`` file, which is a list of them."""
    hint = 'write a list of objects: [{"text": …, "label": …}, …], or one object per line in a .jsonl file.'
    try:
        values = json.loads(content) if content.strip() else []
    except (ValueError, RecursionError) as failure:
        raise BadLine(f"{path} is not JSON.", context=str(failure), hint=hint) from None
    if not isinstance(values, list):
        raise BadLine(f"{path} is not a list.", context=f"found {content.strip()[:60]}", hint=hint)
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise BadLine(f"{path}, example {number} is not an object.", context=f"found {str(value)[:60]}", hint=hint)
    return list(enumerate(values, start=1))


def column_hint(name: str, columns: Sequence[str], where: str = "in the data") -> str:
    """Return what to do where a column is missing."""
    near = did_you_mean(name, columns, "") if name not in columns else ""
    return f"{near} name a column {name!r} {where}, or choose another one (--text-column, --label-column).".lstrip()


def _content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed to a multiple of its size at most."""
    try:
        if path.suffix.lower() != ".gz":
            return path.read_bytes()
        most = room(path.stat().st_size)
        with gzip.open(path) as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as failure:
        hint = "check the permissions, and that the file is complete."
        raise CannotReadData(f"Cannot read {path}.", context=str(failure), hint=hint) from failure
    if len(content) > most:
        raise CannotReadData(
            f"Cannot read {path}.", context=f"it decompresses to more than {most} bytes", hint="decompress it first."
        )
    return content


def _decoded(path: Path) -> str:
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        # The decoder counts bytes after the byte order mark.
        position = failure.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line = content.count(b"\n", 0, position) + 1
        other = "UTF-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "LATIN1"
        raise _not_utf8(path, line, f"byte {position} is 0x{content[position]:02x}: {failure.reason}", other) from None
    if "\0" in text:  # every second byte of UTF-16 without a byte order mark, and what a damaged disk leaves
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _not_utf8(path, line, "it contains a character of code 0", "UTF-16LE")
    return text


def _not_utf8(path: Path, line: int, facts: str, other: str) -> NotUtf8:
    return NotUtf8(
        f"{path}, line {line}: The file is not UTF-8.",
        context=facts,
        hint=f"save it as UTF-8, for example with: iconv -f {other} -t UTF-8.",
    )
