"""Load data of any kind, which the suffix of the path decides."""

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
"""Columns that data of a causal language model may have instead of the default ones."""


def load(
    path: str | Path,
    bundle: Bundle,
    *,
    text_column: str = TEXT,
    label_column: str = LABEL,
    labelled: bool = True,
    template: str | None = None,
) -> Dataset:
    """Load data in the form in which the bundle's model takes it.

    Args:
        path: ``.npz`` (arrays by the name of an input or label), ``.csv`` or ``.jsonl`` (UTF-8, with a text and a label
            column; for a model that takes a vector, a column for each number), or a folder with a folder of images for
            each class.
        bundle: The bundle, which describes the inputs and labels and contains the tokenizer.
        text_column, label_column: Names of the columns. Labels are names or indices of classes, or numbers to predict.
            If an example may have several classes, each class may have its own column with its name instead.
            For a causal language model with a label column, the text is a prompt, and the label is its answer. The
            columns ``prompt`` and ``answer`` are used without being named.
        labelled: Whether labels are needed. If not, labels are ignored, and images may be in the folder itself.
        template: Template of the prompts, with the placeholder ``{prompt}``; ``None`` means the bundle's.

    Returns:
        A data set whose ``batch(rows)`` returns arrays by name, with the manifest's dtypes and shapes: token ids
        padded to the longest text of the batch, images as ``[batch, channels, height, width]``.

    Raises:
        DataError: The data cannot be read, or does not fit the bundle. The message names the file and the line.
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
        f"The kind of the data {path} is unknown.",
        context=f"its suffix is {path.suffix or 'missing'!r}",
        hint="give an .npz, .csv or .jsonl file, or a folder with one folder of images per class.",
    )


def _notice_unused(path: Path, names: tuple[str, str], template: str | None) -> None:
    """Report the options that do not apply to this kind of data."""
    if names != (TEXT, LABEL):
        notice(f"{path}: names of columns are not used: they apply to .csv and .jsonl.")
    if template is not None:
        notice(f"{path}: the template is not used: it applies to prompts of causal language models in .csv and .jsonl.")


def _classified(path: Path, bundle: Bundle, names: tuple[str, str], labelled: bool) -> Dataset:
    """Load texts, with a label for each if labels are needed."""
    text, label = names
    read = label_reader(bundle.manifest) if labelled else None
    labels = _label_columns(path, label, bundle.manifest) if labelled else None
    return tokenized(read_table(path, text, labels, known=(label,)), bundle, read, labelled=labelled)


def _label_columns(path: Path, label: str, manifest: Manifest) -> str | list[str]:
    """Return the label column, or one column per class if there is none and an example may have several classes."""
    classes = list(manifest.classes or ())
    if not takes_several(manifest) or not classes:
        return label
    present = columns(path)
    return classes if label not in present and set(classes) <= set(present) else label


def _causal(path: Path, bundle: Bundle, names: tuple[str, str], labelled: bool, template: str | None) -> Dataset:
    """Load prompts with answers, or texts of which a model learns every token."""
    present = columns(path)
    if names == (TEXT, LABEL) and TEXT not in present and PAIR[0] in present:
        names = PAIR
    if names[1] not in present and names[1] == LABEL:
        return tokenized(read_table(path, names[0], None), bundle, None, labelled=labelled)
    if labelled:
        return answered(read_table(path, *names), bundle, template)
    return prompted(read_table(path, names[0], None, known=names[1:]), bundle, template)
