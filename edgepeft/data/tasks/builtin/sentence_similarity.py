"""Embeddings of texts: texts that belong together become similar, the others of a batch become different."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.errors import WrongColumns
from edgepeft.data.records import Records
from edgepeft.data.table import read_table
from edgepeft.data.tasks.base import ROWS, Model, Reading, Task, first_present, text_inputs
from edgepeft.data.tasks.columns import SECOND, TEXT
from edgepeft.data.tasks.groups import Groups
from edgepeft.data.text import Texts, encoded, texts_of
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some

COLUMNS: tuple[tuple[str, ...], ...] = (
    ("anchor", "query", "question", "sentence1", "premise", TEXT),
    ("positive", "answer", "sentence2", "hypothesis", "document", SECOND),
    ("negative",),
)
"""Names of the columns of anchors, positives and negatives, as data sets of sentence-transformers have them."""


@dataclass(frozen=True)
class SentenceSimilarity(Task):
    """Rows have two texts that belong together, and perhaps a third that does not. A row to predict has one text."""

    name: ClassVar[str] = "sentence-similarity"
    auto_class: ClassVar[str] = "AutoModel"
    marker: ClassVar[str] = "modules.json"
    loss: ClassVar[str] = "multiple_negatives"
    outputs: ClassVar[tuple[str, ...] | None] = ("embeddings",)
    head: ClassVar[str | None] = "Pooled"
    text: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model, ROWS, 2)

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return {name: {0: "batch", 1: "texts", 2: "sequence"} for name in example}

    def table(self, records: Records, reading: Reading) -> Dataset:
        columns = _columns(records, reading)
        bundle, texts = reading.bundle, list[Texts]()
        for column in columns:
            table = read_table(records, [column], None, known=[*columns, reading.columns.label])
            texts.append(texts_of(encoded(table, bundle)[0], bundle.manifest))
        return Groups(texts, bundle.manifest)


def _columns(records: Records, reading: Reading) -> list[str]:
    given, present = reading.columns, records.columns
    if given.texts != (TEXT,):
        return list(given.texts)
    found = [first_present(present, *names) for names in COLUMNS]
    if found[0] is None or (found[1] is None and reading.labelled):
        what = "texts" if found[0] is None else "second texts"
        raise WrongColumns(
            f"{records.source}: There is no column of {what}.",
            context=f"columns: {some(present, 20)}",
            hint="name two text columns (--text-column), or call them anchor and positive.",
        )
    return [name for name in (found if reading.labelled else found[:1]) if name is not None]
