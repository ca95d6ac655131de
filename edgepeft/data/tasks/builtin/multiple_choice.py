"""Which of several texts continues another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgepeft.data.errors import WrongColumns
from edgepeft.data.labels import BadLabel, label_reader, only_label
from edgepeft.data.records import Records
from edgepeft.data.table import Table
from edgepeft.data.tasks.base import ROWS, Model, Reading, Task, first_present, text_inputs
from edgepeft.data.tasks.columns import LABEL, TEXT
from edgepeft.data.tasks.groups import Groups
from edgepeft.data.text import encoded, texts_of
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.shown import quoted

CHOICES = 4
"""Number of choices, unless class names were given."""

FIRST = ("question", "sent1", "premise", "context", "startphrase", TEXT)
LISTS, SINGLE = ("choices", "options", "endings"), ("ending", "choice", "option", "answer")
"""A column with the list of choices, or the names of columns before their numbers."""

BEGINNING = "sent2"
"""In SWAG, the words with which every choice begins."""


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Rows have a text, its possible continuations (a list, or a column for each), and the number of the right one.

    Each continuation is read as a pair with the text. Token ids are ``[examples, choices, tokens]``.
    """

    name: ClassVar[str] = "multiple-choice"
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    mappings: ClassVar[tuple[str, ...]] = ("MULTIPLE_CHOICE",)
    endings: ClassVar[tuple[str, ...]] = ("ForMultipleChoice",)
    text: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model, ROWS, model.classes or CHOICES)

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return {name: {0: "batch", 2: "sequence"} for name in example}

    def table(self, records: Records, reading: Reading) -> Dataset:
        manifest = reading.bundle.manifest
        count = manifest.inputs[0].shape[1]
        assert isinstance(count, int)
        first, choices, beginning = _columns(records, reading, count)
        label = reading.columns.label if reading.labelled else None
        wanted = [first, *([beginning] if beginning else []), *choices, *([label] if label else [])]
        numbers, pairs, labels = list[int](), list[list[tuple[str, str]]](), list[Array]()
        read = label_reader(manifest) if label else None
        for number, cells in records.rows(wanted):
            own = cells[: len(cells) - 1] if label else cells
            numbers.append(number)
            pairs.append(_pairs(records, number, own, count, begins=beginning is not None))
            if read is not None:
                try:
                    labels.append(read(cells[-1]))
                except BadLabel as failure:
                    hint = f"write the number of the right choice, from 0 to {count - 1}."
                    raise records.error(number, "The label is not known.", str(failure), hint) from None
        if not pairs:
            raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one row.")
        texts = []
        for choice in range(count):
            table = Table(records, [row[choice] for row in pairs], None, numbers)
            ids, types = encoded(table, reading.bundle)
            texts.append(texts_of(ids, manifest, type_ids=types))
        return Groups(texts, manifest, {only_label(manifest).name: np.stack(labels)} if labels else {})


def _columns(records: Records, reading: Reading, count: int) -> tuple[str, list[str], str | None]:
    """Return the column of texts, those of choices, and that of the words with which all choices begin."""
    given, present = reading.columns.texts, records.columns
    first = given[0] if given != (TEXT,) else first_present(present, *FIRST)
    lists = list(given[1:]) or [name for name in [first_present(present, *LISTS)] if name]
    named = [[f"{name}{start + index}" for index in range(count)] for name in SINGLE for start in (0, 1)]
    choices = lists or next((names for names in named if set(names) <= set(present)), [])
    missing = [name for name in (LABEL,) if reading.labelled and reading.columns.label == name and name not in present]
    if first is None or not choices or missing:
        what = "texts" if first is None else "labels" if missing else "choices"
        raise WrongColumns(
            f"{records.source}: There is no column of {what}.",
            context=f"columns: {some(present, 20)}",
            hint=f"give the columns question, choices (a list of {count} texts, or ending0 and on) and {LABEL}.",
        )
    return first, choices, BEGINNING if first == "sent1" and BEGINNING in present else None


def _pairs(
    records: Records, number: int, cells: Sequence[object], count: int, *, begins: bool
) -> list[tuple[str, str]]:
    """Return the text with each of its choices."""
    text, beginning, *rest = cells if begins else (cells[0], "", *cells[1:])
    found: object = rest[0] if len(rest) == 1 else rest
    if isinstance(found, dict):  # as CommonsenseQA and ARC have them
        found = found.get("text")
    choices: Sequence[object] = found if isinstance(found, list) else []
    parts = [text, beginning, *choices]
    if len(parts) != count + 2 or not all(isinstance(part, str) for part in parts):
        hint = "give each choice as a string, or leave the row out."
        raise records.error(
            number, f"A row has a text and {count} choices.", f"found {quoted(choices)} for {quoted(text)}", hint
        )
    return [(str(text), f"{beginning} {choice}".strip()) for choice in choices]
