"""One entrance for every kind of data: the suffix of the path decides."""

from __future__ import annotations

from pathlib import Path

from edgepeft.data.arrays import read_arrays
from edgepeft.data.errors import NoSuchData
from edgepeft.data.images import ImageFolder
from edgepeft.data.labels import label_reader, takes_several
from edgepeft.data.numbers import read_rows, takes_rows
from edgepeft.data.table import columns, read_table
from edgepeft.data.text import answered, prompted, tokenized
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.errors import UnknownData
from edgepeft_runtime.notices import notice

TABLES = (".csv", ".jsonl")
TEXT, LABEL = "text", "label"
PAIR = ("prompt", "answer")
"""Columns of a causal language model's data that are found by themselves."""


def load(
    path: str | Path,
    bundle: Bundle,
    *,
    text_column: str = TEXT,
    label_column: str = LABEL,
    labelled: bool = True,
    template: str | None = None,
) -> Dataset:
    """Data as the bundle's model is fed it.

    Args:
        path: ``.npz`` (arrays by the name of an input or label), ``.csv`` or ``.jsonl`` (UTF-8, with a text and a label
            column; for a model that takes a vector, a column for each number), or a folder with a folder of images for
            each class.
        bundle: says which inputs and labels there are, and carries the tokenizer.
        text_column, label_column: names of the columns; labels are names or indices of classes, or numbers to predict.
            Where an example may have several classes, there may be a column for each instead, named as the class.
            For a causal language model the text is a prompt where there is a label column, and the label its answer;
            ``prompt`` and ``answer`` need not be named.
        labelled: whether labels are needed. Without, those that are there do not matter, and images may lie in the
            folder itself.
        template: what prompts are put into, ``{prompt}`` in their place; ``None`` takes the bundle's.

    Returns:
        A data set whose ``batch(rows)`` gives arrays by name, of the dtypes and shapes of the manifest: token ids
        padded to the longest text of the batch, images as ``[batch, channels, height, width]``.

    Raises:
        DataError: what is wrong, in which file and line, and what to do.
    """
    path, names = Path(path), (text_column, label_column)
    if not path.exists():
        raise NoSuchData(f"There is no data at {path}.", context=None, hint="check the path.")
    suffix, manifest = path.suffix.lower(), bundle.manifest
    if path.is_dir() or suffix == ".npz":
        _notice_unused(path, names, template)
        read = ImageFolder if path.is_dir() else read_arrays
        return read(path, manifest, labelled=labelled)
    if suffix in TABLES:
        if manifest.loss.kind == "causal_lm":
            return _causal(path, bundle, names, labelled, template)
        _notice_unused(path, (TEXT, LABEL), template)
        if takes_rows(manifest):
            if text_column != TEXT:
                notice(f"{path}: the text column is not used: the bundle takes numbers.")
            return read_rows(path, manifest, label_column, labelled=labelled)
        return _classified(path, bundle, names, labelled)
    raise UnknownData(
        f"Cannot tell what kind of data {path} is.",
        context=f"its suffix is {path.suffix or 'missing'!r}",
        hint="give an .npz, .csv or .jsonl file, or a folder with one folder of images per class.",
    )


def _notice_unused(path: Path, names: tuple[str, str], template: str | None) -> None:
    """Say which options do not go with this kind of data."""
    if names != (TEXT, LABEL):
        notice(f"{path}: names of columns are not used: they go with .csv and .jsonl.")
    if template is not None:
        notice(f"{path}: the template is not used: it goes with prompts of a causal language model in .csv and .jsonl.")


def _classified(path: Path, bundle: Bundle, names: tuple[str, str], labelled: bool) -> Dataset:
    """Texts with a label for each, or without."""
    text, label = names
    read = label_reader(bundle.manifest) if labelled else None
    labels = _label_columns(path, label, bundle.manifest) if labelled else None
    return tokenized(read_table(path, text, labels, known=(label,)), bundle, read, labelled=labelled)


def _label_columns(path: Path, label: str, manifest: Manifest) -> str | list[str]:
    """The label column; where there is none and an example may have several classes, a column for each class."""
    classes = list(manifest.classes or ())
    if not takes_several(manifest) or not classes:
        return label
    there = columns(path)
    return classes if label not in there and set(classes) <= set(there) else label


def _causal(path: Path, bundle: Bundle, names: tuple[str, str], labelled: bool, template: str | None) -> Dataset:
    """Prompts with answers, or texts of which every token is learned."""
    there = columns(path)
    if names == (TEXT, LABEL) and TEXT not in there and PAIR[0] in there:
        names = PAIR
    if names[1] not in there and names[1] == LABEL:
        return tokenized(read_table(path, names[0], None), bundle, None, labelled=labelled)
    if labelled:
        return answered(read_table(path, *names), bundle, template)
    return prompted(read_table(path, names[0], None, known=names[1:]), bundle, template)
