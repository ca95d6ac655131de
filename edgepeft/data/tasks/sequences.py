"""Texts that a decoder writes: their ids are labels, and what the decoder reads is the labels one position later."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import WrongColumns
from edgepeft.data.labels import only_label
from edgepeft.data.records import Records
from edgepeft.data.table import Table, read_table
from edgepeft.data.tasks.base import Reading, first_present
from edgepeft.data.tasks.columns import LABEL, TEXT
from edgepeft.data.text import Texts, encoded, ignored_index, texts_of
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.batch import NamedBatch
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.shown import quoted

if TYPE_CHECKING:
    from transformers import PretrainedConfig

START = "decoder_start"
INPUTS, TARGETS = (TEXT, "source", "input", "document", "article"), (LABEL, "target", "summary", "output", "highlights")
"""Columns that are used without being named."""


def decoder_start(config: PretrainedConfig) -> dict[str, int]:
    """Return the token with which a decoder begins, as the configuration names it."""
    text = config.get_text_config(decoder=True)
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        found = getattr(config, name, None)
        found = getattr(text, name, None) if found is None else found
        if isinstance(found, int):
            return {START: found}
    return {}


def shifted(labels: NDArray[np.int64], start: int, pad: int, ignored: int) -> NDArray[np.int64]:
    """Return what the decoder reads: the start token and the labels but the last, with padding where they do not count.

    This is ``shift_tokens_right`` of transformers.
    """
    moved = np.empty_like(labels)
    moved[:, 0] = start
    moved[:, 1:] = labels[:, :-1]
    return np.where(moved == ignored, pad, moved)


@dataclass(frozen=True)
class Sequences:
    """Inputs with the text that a decoder writes for each.

    Attributes:
        inputs: The inputs of the encoder.
        targets: Token ids of the texts; ``None`` if there are none, and the decoder reads the start token alone.
        manifest: The bundle's.
    """

    inputs: Dataset
    targets: Texts | None
    manifest: Manifest

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: NDArray[np.int64]) -> NamedBatch:
        """Return inputs, decoder inputs and labels, padded to the longest text of the batch."""
        text, label = self.manifest.text, only_label(self.manifest)
        assert text is not None
        ignored, start = ignored_index(label), (text.special or {}).get(START, text.pad_id)
        arrays: dict[str, Array] = dict(self.inputs.batch(rows))
        if self.targets is None:
            labels = np.full((len(rows), 1), ignored, np.int64)
        else:
            labels = padded(self.targets, rows, ignored)
            arrays[label.name] = labels.astype(label.dtype)
        for spec in self.manifest.inputs:
            if text.fields.get(spec.name) == "decoder_ids":
                arrays[spec.name] = shifted(labels, start, text.pad_id, ignored).astype(spec.dtype)
        return arrays


def padded(
    texts: Texts, rows: NDArray[np.int64], fill: int, values: NDArray[np.uint8] | None = None
) -> NDArray[np.int64]:
    """Return the token ids of some texts, or other values of the tokens, with this number after their ends.

    The result is ``[rows, longest]``.
    """
    lengths = texts.starts[rows + 1] - texts.starts[rows]
    width = int(lengths.max(initial=1))
    mask = np.arange(width) < lengths[:, None]
    flat = texts.ids if values is None else values
    return np.where(mask, flat[np.where(mask, texts.starts[rows, None] + np.arange(width), 0)], fill)


def read_pairs(records: Records, reading: Reading) -> Dataset:
    """Read a table of texts and of the texts to write for them."""
    given, present = reading.columns, records.columns
    source = given.texts[0] if given.texts != (TEXT,) else first_present(present, *INPUTS)
    target = given.label if given.label != LABEL else first_present(present, *TARGETS)
    if source is None or (target is None and reading.labelled):
        raise WrongColumns(
            f"{records.source}: There is no column of {'texts' if source is None else 'texts to write'}.",
            context=f"columns: {some(present, 20)}",
            hint=f"name it (--text-column, --label-column), or call the columns {TEXT!r} and {LABEL!r}.",
        )
    bundle = reading.bundle
    known = [] if target is None else [target]
    table = read_table(records, [source], target if reading.labelled else None, known=known)
    ids, types = encoded(table, bundle)
    inputs = texts_of(ids, bundle.manifest, type_ids=types)
    return Sequences(inputs, written(table, reading) if reading.labelled else None, bundle.manifest)


def written(table: Table, reading: Reading, beside: Collection[str] = ()) -> Texts:
    """Return the labels of a table as texts that a decoder writes.

    A tokenizer may begin a text with the token that the decoder reads first (Whisper). It is no label then.
    """
    for row, value in enumerate(table.labels or ()):
        if not isinstance(value, str) or not value:
            message, hint = "The text to write is not text.", "write it as a string, or leave the row out."
            raise table.error(row, message, f"found {quoted(value)}", hint)
    texts = Table(table.records, [str(value) for value in table.labels or ()], None, table.numbers)
    ids, _ = encoded(texts, reading.bundle, beside)
    start = special_of(reading.bundle.manifest).get(START)
    if beside and all(len(own) > 1 and own[0] == start for own in ids):
        ids = [own[1:] for own in ids]
    return texts_of(ids, reading.bundle.manifest)


def special_of(manifest: Manifest) -> Mapping[str, int]:
    """Return the ids of special tokens by name."""
    return (manifest.text.special if manifest.text is not None else None) or {}
