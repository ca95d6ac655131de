"""Read texts and labels from ``.csv`` and ``.jsonl`` files, with their line numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepeft.data.errors import BadLine, NotUtf8
from edgepeft_runtime.errors import CannotReadData, DataError, NoData
from edgepeft_runtime.files.strict_json import is_text
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

Row = tuple[int, list[object]]
"""Line in the file, from 1, and the values of the requested columns."""


@dataclass(frozen=True)
class Table:
    """The content of a file.

    Attributes:
        path: The file.
        texts: One text per example.
        labels: One label per example, as it is in the file; ``None`` if no label column was requested.
        lines: Line of each example, from 1; its first line if it has several.
    """

    path: Path
    texts: list[str]
    labels: list[object] | None
    lines: list[int]

    def error(self, row: int, message: str, context: str, hint: str) -> DataError:
        """Return an error that names the line of an example."""
        return line_error(self.path, self.lines[row], message, context, hint)


def read_table(
    path: Path, text_column: str, label_column: str | Sequence[str] | None, known: Sequence[str] = ()
) -> Table:
    """Read a UTF-8 file, with or without a byte order mark; ``label_column=None`` reads only the texts.

    Args:
        path: A ``.csv`` or ``.jsonl`` file.
        text_column, label_column: Names of the columns. With several label columns, the label of an example is a list.
        known: Further columns that the file may have. A notice names all others, which are not used.

    Raises:
        DataError: The file is not UTF-8, is malformed, lacks a column, or has no examples.
    """
    labels = [label_column] if isinstance(label_column, str) else list(label_column or ())
    wanted, fields = [text_column, *labels], dict[str, None]()
    rows = read_columns(path, wanted, fields)
    table = Table(path, [], None if label_column is None else [], [])
    for line, (text, *cells) in rows:
        if not isinstance(text, str):
            raise line_error(
                path, line, "The text is not text.", f"expected a string, found {quoted(text)}", "write it as a string."
            )
        for value in (text, *cells):
            if isinstance(value, str) and not is_text(value):
                message = "A text contains half of a surrogate pair."
                hint = "write the character itself, in UTF-8, or both halves (\\ud83d\\ude00)."
                raise line_error(path, line, message, f"found {quoted(value)}", hint)
        table.texts.append(text)
        table.lines.append(line)
        if table.labels is not None:
            table.labels.append(cells[0] if isinstance(label_column, str) else cells)
    if not table.texts:
        raise NoData(f"{path} contains no examples.", context=None, hint="give at least one line of data.")
    unused = [name for name in fields if name not in (*wanted, *known)]
    if unused:
        notice(f"{path}: columns that are not used: {some(unused)}.")
    return table


def read_columns(path: Path, wanted: Sequence[str], fields: dict[str, None] | None = None) -> Iterator[Row]:
    """Yield the requested columns of a UTF-8 file line by line, and add the names of all its columns to ``fields``."""
    read = _csv_rows if path.suffix.lower() == ".csv" else _jsonl_rows
    return read(path, _decoded(path), wanted, {} if fields is None else fields)


def columns(path: Path) -> list[str]:
    """Return the names of the columns: the header of a ``.csv`` file, the fields of a ``.jsonl`` file's first line."""
    content = _decoded(path)
    if path.suffix.lower() == ".csv":
        return [name.strip() for name in next(_csv_records(path, content), (1, []))[1]]
    numbered = enumerate(content.split("\n"), start=1)
    first = next(((line, record) for line, record in numbered if record.strip()), None)
    return [] if first is None else list(_json(path, *first))


def line_error(path: Path, line: int, message: str, context: str | None, hint: str) -> DataError:
    """Return the error of one line of a file."""
    return BadLine(f"{path}, line {line}: {message}", context=context, hint=hint)


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise CannotReadData(f"Cannot read {path}.", context=str(failure), hint="check the permissions.") from failure
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        # The decoder counts bytes after the byte order mark.
        position = failure.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line = content.count(b"\n", 0, position) + 1
        raise NotUtf8(
            f"{path}, line {line}: The file is not UTF-8.",
            context=f"byte {position} is 0x{content[position]:02x}: {failure.reason}",
            hint="save it as UTF-8, for example with: iconv -f LATIN1 -t UTF-8.",
        ) from None


def _csv_rows(path: Path, content: str, wanted: Sequence[str], fields: dict[str, None]) -> Iterator[Row]:
    records = _csv_records(path, content)
    line, names = next(records, (1, []))
    if not names:
        raise NoData(f"{path} is empty.", context=None, hint="give a header line and at least one line of data.")
    header = [name.strip() for name in names]
    fields.update(dict.fromkeys(header))
    indices = [_column(path, line, header, name) for name in wanted]
    for line, cells in records:
        if len(cells) != len(header):
            raise line_error(
                path,
                line,
                f"The line has {len(cells)} cells, but the header has {len(header)}.",
                f"header: {', '.join(header)}",
                'put text with a comma or a line break in double quotes, and write a quote in it as "".',
            )
        yield line, [cells[index] for index in indices]


def _csv_records(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank, with the first line of each."""
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        start = 1
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as failure:
        hint = 'put cells with line breaks or quotes in double quotes, and write a quote in them as "".'
        raise line_error(path, start, "The record is not well-formed CSV.", str(failure), hint) from None
    finally:
        csv.field_size_limit(limit)  # the limit applies to the whole process


def _column(path: Path, line: int, header: Sequence[str], name: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    problem = f"There is no column {name!r}." if name not in header else f"There are several columns {name!r}."
    raise line_error(path, line, problem, f"columns: {', '.join(header)}", _column_hint(name))


def _column_hint(name: str) -> str:
    return f"name a column {name!r} in the data, or choose another one (--text-column, --label-column)."


def _jsonl_rows(path: Path, content: str, wanted: Sequence[str], fields: dict[str, None]) -> Iterator[Row]:
    # splitlines would also split at the Unicode line separators that JSON allows inside strings.
    for line, record in enumerate(content.split("\n"), start=1):
        if not record.strip():
            continue
        value = _json(path, line, record)
        fields.update(dict.fromkeys(value))
        for name in wanted:
            if name not in value:
                raise line_error(
                    path, line, f"There is no field {name!r}.", f"fields: {', '.join(value)}", _column_hint(name)
                )
        yield line, [value[name] for name in wanted]


def _json(path: Path, line: int, record: str) -> dict[str, object]:
    try:
        value = json.loads(record)
    except (ValueError, RecursionError) as failure:
        raise line_error(path, line, "The line is not JSON.", str(failure), "write one JSON object per line.") from None
    if not isinstance(value, dict):
        raise line_error(
            path,
            line,
            "The line is not a JSON object.",
            f"found {record.strip()[:60]}",
            'write {"text": …, "label": …} on each line.',
        )
    return value
