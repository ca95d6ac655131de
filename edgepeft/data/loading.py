"""Load data of any kind: files, recognized by the suffix of the path, and rows in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepeft.data.arrays import read_arrays
from edgepeft.data.errors import NoSuchData, WrongColumns
from edgepeft.data.memory import rows_in_memory
from edgepeft.data.records import SUFFIXES, Records, read_records, suffix_of
from edgepeft.data.tables.weights import weighted
from edgepeft.data.tasks.base import Reading, Task
from edgepeft.data.tasks.columns import LABEL, TEXT, Columns, notice_unused
from edgepeft.data.tasks.registry import task_of
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.errors import UnknownData
from edgepeft_runtime.names import path_hint, some

_LOG = logging.getLogger(__name__)


def load(
    data: Any,
    bundle: Bundle | str | Path,
    *,
    text_column: str | Sequence[str] = TEXT,
    label_column: str = LABEL,
    labelled: bool = True,
    template: str | None = None,
) -> Dataset:
    """Load data in the form in which the bundle's model accepts it.

    Args:
        data: A path, or rows in memory. Files: ``.npz`` (arrays by the name of an input or label); ``.csv`` (separated
            by commas, semicolons or tabs), ``.tsv``, ``.jsonl`` or ``.json`` (a list of objects) in UTF-8, each also
            ``.gz``, with a text and a label column or, for a model of vectors, a column for each number; a
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
    columns = Columns((text_column,) if isinstance(text_column, str) else tuple(text_column), label_column)
    if len(columns.texts) not in (1, 2):
        raise WrongColumns(
            "An example has one text, or a pair of texts.",
            context=f"text columns: {some(columns.texts)}",
            hint="name one or two text columns.",
        )
    task, reading = task_of(bundle.manifest), Reading(bundle, columns, labelled, template)
    if not isinstance(data, str | Path):
        return _table(rows_in_memory(data, columns.texts, columns.label), task, reading)
    path = Path(data)
    if not path.exists():
        raise NoSuchData(f"There is no data at {path}.", context=None, hint=path_hint(path, "check the path."))
    if path.is_dir():
        examples = task.folder(path, reading)
        return weighted(examples, bundle.manifest, str(path)) if labelled else examples
    if path.suffix.lower() == ".npz":
        notice_unused(str(path), columns, template)
        return read_arrays(path, bundle.manifest, labelled=labelled)
    if suffix_of(path) in SUFFIXES:
        return _table(read_records(path), task, reading)
    raise UnknownData(
        f"The kind of the data {path} is unknown.",
        context=f"its suffix is {path.suffix or 'missing'!r}",
        hint=_instead_of(path.suffix.lower()),
    )


def _instead_of(suffix: str) -> str:
    """Return what to do about a file of an unknown kind."""
    if suffix in (".xlsx", ".xls", ".ods"):
        return "save it as .csv in the spreadsheet, with the column names in the first line."
    if suffix in (".npy", ".pkl", ".pickle", ".pt"):
        return "write it as .npz: numpy.savez(path, NAME=array, ...), with the names of the bundle's inputs and labels."
    if suffix in (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"):
        return "give the folder that the image is in."
    if suffix == ".txt":
        return 'write it as .csv (a line "text,label", then an example on each line) or as .jsonl.'
    return "give an .npz, .csv, .tsv, .jsonl, .json or .parquet file, or a folder with one folder of images per class."


def _table(records: Records, task: Task, reading: Reading) -> Dataset:
    """Read the rows of a table."""
    dataset = task.table(records, reading)
    if reading.labelled:
        dataset = weighted(dataset, reading.bundle.manifest, records.source, records)
    _LOG.debug("%s: %d examples, columns %s", records.source, len(dataset), some(records.columns, 20))
    return dataset
