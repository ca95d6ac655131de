"""Load data of any kind: files, which the suffix of the path tells apart, and rows in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepeft.data.arrays import read_arrays
from edgepeft.data.conversations.instructions import INSTRUCTION, Instructions
from edgepeft.data.conversations.turns import MESSAGES, conversed
from edgepeft.data.errors import NoSuchData, WrongColumns
from edgepeft.data.images import ImageFolder
from edgepeft.data.labels import label_reader, takes_several
from edgepeft.data.memory import rows_in_memory
from edgepeft.data.numbers import read_rows, takes_rows
from edgepeft.data.records import SUFFIXES, Records, read_records, suffix_of
from edgepeft.data.table import read_table
from edgepeft.data.text import answered, prompted, tokenized
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.errors import UnknownData
from edgepeft_runtime.names import path_hint, some
from edgepeft_runtime.notices import notice

_LOG = logging.getLogger(__name__)

TEXT, LABEL = "text", "label"
SECOND = "text_pair"
"""Column of second texts that is used without being named, as the pipelines of ``transformers`` name it."""
PAIRS = (("prompt", "answer"), ("prompt", "completion"))
"""Columns that data of a causal language model may have instead of the default ones."""


@dataclass(frozen=True)
class _Names:
    """Names of the columns: of one text or of two, and of the label."""

    texts: tuple[str, ...]
    label: str

    @property
    def given(self) -> bool:
        """Whether any of them is not the default."""
        return (self.texts, self.label) != ((TEXT,), LABEL)


def load(
    data: Any,
    bundle: Bundle | str | Path,
    *,
    text_column: str | Sequence[str] = TEXT,
    label_column: str = LABEL,
    labelled: bool = True,
    template: str | None = None,
) -> Dataset:
    """Load data in the form in which the bundle's model takes it.

    Args:
        data: A path, or rows in memory. Files: ``.npz`` (arrays by the name of an input or label); ``.csv`` (separated
            by commas, semicolons or tabs), ``.tsv``, ``.jsonl`` or ``.json`` (a list of objects) in UTF-8, each also
            ``.gz``, with a text and a label column or, for a model that takes a vector, a column for each number; a
            folder with a folder of images for each class. In memory: a data frame (pandas, polars), a
            ``datasets.Dataset``, a dict of columns, or a list of texts, of (text, label) pairs or of dicts.
        bundle: The bundle, which describes the inputs and labels and contains the tokenizer.
        text_column, label_column: Names of the columns. Two text columns are a pair of texts; ``text_pair`` is used
            as the second one without being named. Labels are names or indices of classes, or numbers to predict.
            If an example may have several classes, each class may have its own column with its name instead.
            For a causal language model with a label column, the text is a prompt, and the label is its answer. The
            columns ``prompt`` and ``answer`` (or ``completion``) are used without being named, and so are
            ``instruction``, ``input`` and ``output``, and ``messages``: conversations, rendered by the model's chat
            template, of which the assistant's turns are learned. ``prompt`` and ``completion`` may be lists of
            messages.
        labelled: Whether labels are needed. If not, labels are ignored, and images may be in the folder itself.
        template: Template of the prompts, with the placeholder ``{prompt}``; ``None`` means the bundle's.

    Returns:
        A data set whose ``batch(rows)`` returns arrays by name, with the manifest's dtypes and shapes: token ids
        padded to the longest text of the batch, images as ``[batch, channels, height, width]``.

    Raises:
        DataError: The data cannot be read, or does not fit the bundle. The message names the file and the line.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    names = _Names((text_column,) if isinstance(text_column, str) else tuple(text_column), label_column)
    if len(names.texts) not in (1, 2):
        raise WrongColumns(
            "An example has one text, or a pair of texts.",
            context=f"text columns: {some(names.texts)}",
            hint="name one or two text columns.",
        )
    if not isinstance(data, str | Path):
        return _rows(rows_in_memory(data, names.texts, names.label), bundle, names, labelled, template)
    path = Path(data)
    if not path.exists():
        raise NoSuchData(f"There is no data at {path}.", context=None, hint=path_hint(path, "check the path."))
    if path.is_dir() or path.suffix.lower() == ".npz":
        _notice_unused(str(path), names, template)
        read = ImageFolder if path.is_dir() else read_arrays
        return read(path, bundle.manifest, labelled=labelled)
    if suffix_of(path) in SUFFIXES:
        return _rows(read_records(path), bundle, names, labelled, template)
    raise UnknownData(
        f"The kind of the data {path} is unknown.",
        context=f"its suffix is {path.suffix or 'missing'!r}",
        hint=_instead_of(path.suffix.lower()),
    )


def _instead_of(suffix: str) -> str:
    """Return what to do about a file of an unknown kind."""
    if suffix in (".xlsx", ".xls", ".ods"):
        return "save it as .csv in the spreadsheet, with the column names in the first line."
    if suffix == ".txt":
        return 'write it as .csv (a line "text,label", then an example on each line) or as .jsonl.'
    return "give an .npz, .csv, .tsv, .jsonl or .json file, or a folder with one folder of images per class."


def _rows(records: Records, bundle: Bundle, names: _Names, labelled: bool, template: str | None) -> Dataset:
    """Load the rows of a table."""
    dataset = _read_rows(records, bundle, names, labelled, template)
    _LOG.debug("%s: %d examples, columns %s", records.source, len(dataset), some(records.columns, 20))
    return dataset


def _read_rows(records: Records, bundle: Bundle, names: _Names, labelled: bool, template: str | None) -> Dataset:
    manifest = bundle.manifest
    if manifest.loss.kind == "causal_lm":
        return _causal(records, bundle, names, labelled, template)
    _notice_unused(records.source, _Names((TEXT,), LABEL), template)
    if takes_rows(manifest):
        if names.texts != (TEXT,):
            notice(f"{records.source}: the text column is not used: the bundle takes numbers.")
        return read_rows(records, manifest, names.label, labelled=labelled)
    return _classified(records, bundle, names, labelled)


def _of_messages(records: Records, column: str) -> bool:
    """Whether the first value of a column is a list of messages."""
    return isinstance(next(records.rows([column]), (1, [""]))[1][0], list)


def _notice_unused(
    source: str,
    names: _Names,
    template: str | None,
    why: str = "it applies to prompts of causal language models in tables",
) -> None:
    """Report the options that do not apply to this kind of data."""
    if names.given:
        notice(f"{source}: names of columns are not used: they apply to tables, such as .csv and .jsonl.")
    if template is not None:
        notice(f"{source}: the template is not used: {why}.")


def _classified(records: Records, bundle: Bundle, names: _Names, labelled: bool) -> Dataset:
    """Load texts or pairs of texts, with a label for each if labels are needed."""
    read = label_reader(bundle.manifest) if labelled else None
    labels = _label_columns(records, names.label, bundle.manifest) if labelled else None
    texts = names.texts
    if texts == (TEXT,) and {TEXT, SECOND} <= set(records.columns):
        texts = (TEXT, SECOND)
    return tokenized(read_table(records, texts, labels, known=(names.label,)), bundle, read, labelled=labelled)


def _label_columns(records: Records, label: str, manifest: Manifest) -> str | list[str]:
    """Return the label column, or one column per class if there is none and an example may have several classes."""
    classes = list(manifest.classes or ())
    if not takes_several(manifest) or not classes:
        return label
    present = records.columns
    return classes if label not in present and set(classes) <= set(present) else label


def _causal(records: Records, bundle: Bundle, names: _Names, labelled: bool, template: str | None) -> Dataset:
    """Load prompts with answers, or texts of which a model learns every token."""
    if not names.given and TEXT not in records.columns:
        if MESSAGES in records.columns:
            _notice_unused(records.source, names, template, "conversations go through the bundle's chat template")
            return conversed(records, [MESSAGES], bundle, labelled=labelled)
        if INSTRUCTION in records.columns:
            records = Instructions(records)
        columns = next((pair for pair in PAIRS if set(pair) <= set(records.columns)), ("prompt", "answer"))
        if columns[0] in records.columns:
            if _of_messages(records, columns[0]):
                _notice_unused(records.source, names, template, "conversations go through the bundle's chat template")
                return conversed(records, columns if labelled else columns[:1], bundle, labelled=labelled)
            names = _Names(columns[:1], columns[1])
    present = records.columns
    if names.label not in present and names.label == LABEL:
        return tokenized(read_table(records, names.texts, None), bundle, None, labelled=labelled)
    if labelled:
        return answered(read_table(records, names.texts, names.label), bundle, template)
    return prompted(read_table(records, names.texts, None, known=(names.label,)), bundle, template)
