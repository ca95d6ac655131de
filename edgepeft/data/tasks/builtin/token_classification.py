"""A class for each word of a text: entities, parts of speech."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import WrongColumns
from edgepeft.data.labels import BadLabel, ClassReader, only_label
from edgepeft.data.records import Records
from edgepeft.data.tasks.base import Model, Reading, Task, first_present, text_inputs
from edgepeft.data.tasks.columns import LABEL, TEXT
from edgepeft.data.text import ignored_index, longest_of, text_spec_of, texts_of
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

WORDS, LABELS = ("tokens", "words"), ("ner_tags", "tags", "labels", "pos_tags")
"""Columns that data sets of the Hub have."""


@dataclass(frozen=True)
class TokenClassification(Task):
    """Rows have a list of words and a list of as many labels. A word's first token has its label, others none."""

    name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    mappings: ClassVar[tuple[str, ...]] = ("TOKEN_CLASSIFICATION",)
    endings: ClassVar[tuple[str, ...]] = ("ForTokenClassification",)
    text: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model)

    def table(self, records: Records, reading: Reading) -> Dataset:
        words, labels = _columns(records, reading)
        manifest, labelled = reading.bundle.manifest, reading.labelled
        tokenizer, longest = tokenizer_of(reading.bundle), longest_of(manifest, text_spec_of(manifest))
        tokenizer.enable_truncation(longest)
        label = only_label(manifest)
        read, ignored = ClassReader(label, manifest.classes), ignored_index(label)
        ids, types, targets, lost = list[NDArray[np.int32]](), list[NDArray[np.uint8]](), list[NDArray[np.int32]](), 0
        for number, cells in records.rows([words, labels] if labelled else [words]):
            given = _words(records, number, cells[0])
            encoding = tokenizer.encode(given, is_pretokenized=True)
            ids.append(np.asarray(encoding.ids, np.int32))
            types.append(np.asarray(encoding.type_ids, np.uint8))
            if labelled:
                classes = _classes(records, number, given, cells[1], read)
                targets.append(_first_tokens(encoding.word_ids, classes, ignored))
            lost += bool(encoding.overflowing)
        if not ids:
            raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one row.")
        if lost:
            notice(f"{records.source}: {lost} of {len(ids)} rows are cut to {longest} tokens.")
        return texts_of(ids, manifest, type_ids=types, token_labels=targets if labelled else None)


def _columns(records: Records, reading: Reading) -> tuple[str, str]:
    given, present = reading.columns, records.columns
    words = given.texts[0] if given.texts != (TEXT,) else first_present(present, *WORDS, TEXT)
    labels = given.label if given.label != LABEL else first_present(present, *LABELS, LABEL)
    if words is None or (labels is None and reading.labelled):
        raise WrongColumns(
            f"{records.source}: There is no column of {'words' if words is None else 'labels'}.",
            context=f"columns: {some(present, 20)}",
            hint=f"name it (--text-column, --label-column), or call the lists {WORDS[0]!r} and {LABELS[0]!r}.",
        )
    return words, labels or LABEL


def _words(records: Records, number: int, cell: object) -> list[str]:
    words = cell.split() if isinstance(cell, str) else list(cell) if isinstance(cell, list | tuple) else []
    if words and all(isinstance(word, str) for word in words):
        return words
    hint = "write a list of texts, or words with spaces between them."
    raise records.error(number, "The words are not a list of texts.", f"found {quoted(cell)}", hint)


def _classes(records: Records, number: int, words: list[str], cell: object, read: ClassReader) -> list[int]:
    labels = cell.split() if isinstance(cell, str) else list(cell) if isinstance(cell, list | tuple) else []
    if len(labels) != len(words):
        message = f"There are {len(words)} words and {len(labels)} labels."
        raise records.error(number, message, f"found {quoted(cell)}", "give one label for each word.")
    try:
        return [read(label) for label in labels]
    except BadLabel as failure:
        hint = "correct the label, or leave the row out."
        raise records.error(number, "A label is not known.", str(failure), hint) from None


def _first_tokens(word_ids: list[int | None], classes: list[int], ignored: int) -> NDArray[np.int32]:
    """Return the class of each token that begins a word, and the ignored index for others."""
    firsts = [word is not None and word != before for word, before in zip(word_ids, [None, *word_ids], strict=False)]
    return np.asarray(
        [
            classes[word] if first and word is not None else ignored
            for word, first in zip(word_ids, firsts, strict=True)
        ],
        np.int32,
    )
