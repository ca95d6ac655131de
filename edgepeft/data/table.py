"""Texts and labels of a table, with the numbers of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgepeft.data.records import Records
from edgepeft_runtime.errors import DataError, NoData
from edgepeft_runtime.files.strict_json import is_text
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

Text = str | tuple[str, str]
"""A text, or a pair of texts that the tokenizer joins."""


@dataclass(frozen=True)
class Table:
    """Texts with labels.

    Attributes:
        records: The rows that they come from.
        texts: One text per example, or a pair of texts.
        labels: One label per example, as it is in the data; ``None`` if no label column was requested.
        numbers: Number of each row, from 1; in a file its first line.
    """

    records: Records
    texts: list[Text]
    labels: list[object] | None
    numbers: list[int]

    @property
    def source(self) -> str:
        """Names the data in messages."""
        return self.records.source

    def error(self, row: int, message: str, context: str, hint: str) -> DataError:
        """Return an error that names the row of an example."""
        return self.records.error(self.numbers[row], message, context, hint)


def read_table(
    records: Records,
    text_column: str | Sequence[str],
    label_column: str | Sequence[str] | None,
    known: Sequence[str] = (),
) -> Table:
    """Read texts and labels; ``label_column=None`` reads only the texts.

    Args:
        records: The rows.
        text_column: The name of the column, or the names of two for pairs of texts.
        label_column: The name of the column. With several label columns, the label of an example is a list.
        known: Further columns that the data may have. A notice names all others, which are not used.

    Raises:
        DataError: The data is malformed, lacks a column, or has no examples.
    """
    texts = [text_column] if isinstance(text_column, str) else list(text_column)
    labels = [label_column] if isinstance(label_column, str) else list(label_column or ())
    wanted, fields = [*texts, *labels], dict[str, None]()
    table = Table(records, [], None if label_column is None else [], [])
    for number, cells in records.rows(wanted, fields):
        own = [_text(records, number, name, value) for name, value in zip(texts, cells, strict=False)]
        table.texts.append(own[0] if len(own) == 1 else (own[0], own[1]))
        table.numbers.append(number)
        if table.labels is not None:
            values = cells[len(texts) :]
            for value in values:
                _check_unicode(records, number, value)
            table.labels.append(values[0] if isinstance(label_column, str) else values)
    if not table.texts:
        raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one line of data.")
    unused = [name for name in fields if name not in (*wanted, *known)]
    if unused:
        notice(f"{records.source}: columns that are not used: {some(unused)}.")
    return table


def _text(records: Records, number: int, name: str, value: object) -> str:
    if not isinstance(value, str):
        found = f"expected a string, found {quoted(value)}"
        raise records.error(number, f"The column {name!r} is not text.", found, "write it as a string.")
    _check_unicode(records, number, value)
    return value


def _check_unicode(records: Records, number: int, value: object) -> None:
    if isinstance(value, str) and not is_text(value):
        message = "A text contains half of a surrogate pair."
        hint = "write the character itself, in UTF-8, or both halves (\\ud83d\\ude00)."
        raise records.error(number, message, f"found {quoted(value)}", hint)
