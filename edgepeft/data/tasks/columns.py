"""The columns of tables of texts or numbers with labels."""

from __future__ import annotations

from dataclasses import dataclass

from edgepeft.data.labels import label_reader, takes_several, weights_label
from edgepeft.data.records import Records
from edgepeft.data.table import read_table
from edgepeft.data.tables.numbers import read_rows, takes_rows
from edgepeft.data.text import tokenized
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.notices import notice

TEXT, LABEL = "text", "label"
SECOND = "text_pair"
"""Column of second texts that is used without being named, as the pipelines of ``transformers`` name it."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns: of one text or of two, and of the label."""

    texts: tuple[str, ...] = (TEXT,)
    label: str = LABEL

    @property
    def given(self) -> bool:
        """Whether any of them is not the default."""
        return (self.texts, self.label) != ((TEXT,), LABEL)


def notice_unused(
    source: str,
    columns: Columns,
    template: str | None,
    why: str = "it applies to prompts of causal language models in tables",
) -> None:
    """Report the options that do not apply to this kind of data."""
    if columns.given:
        notice(f"{source}: names of columns are not used: they apply to tables, such as .csv and .jsonl.")
    if template is not None:
        notice(f"{source}: the template is not used: {why}.")


def classified(records: Records, bundle: Bundle, columns: Columns, labelled: bool) -> Dataset:
    """Read rows of numbers, texts or pairs of texts, with a label for each if labels are needed."""
    manifest = bundle.manifest
    if takes_rows(manifest):
        if columns.texts != (TEXT,):
            notice(f"{records.source}: the text column is not used: the bundle accepts numbers.")
        return read_rows(records, manifest, columns.label, labelled=labelled)
    read = label_reader(manifest) if labelled else None
    labels = _label_columns(records, columns.label, manifest) if labelled else None
    texts = columns.texts
    if texts == (TEXT,) and {TEXT, SECOND} <= set(records.columns):
        texts = (TEXT, SECOND)
    weights = weights_label(manifest)
    known = (columns.label,) if weights is None else (columns.label, weights.name)
    return tokenized(read_table(records, texts, labels, known=known), bundle, read)


def _label_columns(records: Records, label: str, manifest: Manifest) -> str | list[str]:
    """Return the label column, or one column per class if there is none and an example may have several classes."""
    classes = list(manifest.classes or ())
    if not takes_several(manifest) or not classes:
        return label
    present = records.columns
    return classes if label not in present and set(classes) <= set(present) else label
