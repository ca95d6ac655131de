"""Texts to token ids, with the tokenizer that the bundle carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.labels import BadLabel, LabelReader, only_label
from edgepeft.data.table import Table
from edgepeft_runtime.bundle import Bundle
from edgepeft_runtime.errors import DataError
from edgepeft_runtime.manifest import LabelSpec, Manifest, TensorSpec, TextSpec
from edgepeft_runtime.tensorfile import Array

TOKENIZER = "tokenizer.json"
_CHUNK = 1024
"""Texts tokenized at a time: an encoding takes many times the memory of its ids."""

_IGNORED = -100
"""What torch and transformers give a label that does not count."""


@dataclass(frozen=True)
class Texts:
    """Tokenized texts, padded per batch to the longest.

    Attributes:
        ids: token ids of all texts, one after another, int32 ``[tokens]``.
        type_ids: segment of each token, uint8 ``[tokens]``.
        starts: where each text begins in them, int64 ``[examples + 1]``.
        labels: ``[examples, ...]``; ``None`` where there are none, or where the ids themselves are the labels.
        manifest: says which input takes what.
        next_token: the label that takes the ids themselves, ``ignore_index`` on padding; ``None`` where there is none.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8]
    starts: NDArray[np.int64]
    labels: Array | None
    manifest: Manifest
    next_token: LabelSpec | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """The examples of the given numbers; ids, mask and segments are ``[rows, longest]``."""
        text = self.manifest.text
        assert text is not None  # tokenized() has seen to it
        lengths = self.starts[rows + 1] - self.starts[rows]
        width = max(int(lengths.max(initial=0)), *(_least(spec, self.manifest) for spec in self.manifest.inputs))
        mask = np.arange(width) < lengths[:, None]
        place = np.where(mask, self.starts[rows, None] + np.arange(width), 0)
        ids = np.where(mask, self.ids[place], text.pad_id)
        values = {"ids": ids, "attention_mask": mask, "type_ids": np.where(mask, self.type_ids[place], 0)}
        arrays = {spec.name: values[text.fields[spec.name]].astype(spec.dtype) for spec in self.manifest.inputs}
        if self.next_token is not None:
            ignored = _IGNORED if self.next_token.ignore_index is None else self.next_token.ignore_index
            arrays[self.next_token.name] = np.where(mask, ids, ignored).astype(self.next_token.dtype)
        if self.labels is not None:
            arrays[self.manifest.labels[0].name] = self.labels[rows]
        return arrays


def tokenized(table: Table, bundle: Bundle, read_label: LabelReader | None, *, labelled: bool) -> Texts:
    """Tokenize the texts of a table once, cut to the bundle's longest.

    Args:
        table: texts and labels.
        bundle: carries ``tokenizer.json`` and says which input takes ids, mask and segments.
        read_label: what makes arrays of the labels; ``None`` where the table has none.
        labelled: whether a causal language model's ids become its labels.
    """
    manifest = bundle.manifest
    spec = _text_spec(manifest)
    next_token = only_label(manifest) if labelled and manifest.loss.kind == "causal_lm" else None
    labels = None if read_label is None or table.labels is None else _labels(table, read_label)
    encoded = _encode(table.texts, bundle, min(spec.max_length, *(_most(x, manifest, spec) for x in manifest.inputs)))
    lengths = np.asarray([len(ids) for ids, _ in encoded], dtype=np.int64)
    _check_lengths(table, lengths, 1 if next_token is None else 2)
    return Texts(
        np.concatenate([ids for ids, _ in encoded]),
        np.concatenate([type_ids for _, type_ids in encoded]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        labels,
        manifest,
        next_token,
    )


def _text_spec(manifest: Manifest) -> TextSpec:
    spec = manifest.text
    inputs = [tensor.name for tensor in manifest.inputs]
    if spec is None:
        raise DataError(
            "no-text",
            "The bundle does not take text.",
            context=f"its inputs: {', '.join(inputs)}",
            hint="give the data as .npz, or prepare the bundle with a text specification and a tokenizer.",
        )
    other = [name for name in inputs if name not in spec.fields]
    if other:
        raise DataError(
            "no-text",
            f"The bundle has inputs that text does not give: {', '.join(other)}.",
            context=f"text gives: {', '.join(spec.fields)}",
            hint="give the data as .npz, with an array for each input and label.",
        )
    return spec


def _encode(texts: Sequence[str], bundle: Bundle, longest: int) -> list[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
    tokenizer = _tokenizer(bundle)
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    encoded = []
    for start in range(0, len(texts), _CHUNK):
        for encoding in tokenizer.encode_batch(list(texts[start : start + _CHUNK])):
            encoded.append((np.asarray(encoding.ids, np.int32), np.asarray(encoding.type_ids, np.uint8)))
    return encoded


def _tokenizer(bundle: Bundle) -> Any:
    if TOKENIZER not in bundle.manifest.files:
        raise DataError(
            "no-tokenizer",
            "The bundle carries no tokenizer.",
            context=f"{bundle.path} has no {TOKENIZER}",
            hint="prepare it from a model directory with a tokenizer.json, or give the data as .npz with token ids.",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise DataError(
            "missing-tokenizers",
            "Reading text needs the package tokenizers, which is not installed.",
            context=None,
            hint="pip install 'edgepeft[text]'",
        ) from None
    path = bundle.file(TOKENIZER)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as failure:  # tokenizers raises the bare class
        raise DataError(
            "bad-tokenizer", f"Cannot read {path}.", context=str(failure), hint="prepare the bundle again."
        ) from failure


def _labels(table: Table, read: LabelReader) -> Array:
    arrays = []
    for row, value in enumerate(table.labels or ()):
        try:
            arrays.append(read(value))
        except BadLabel as failure:
            raise table.error(
                row, "The label is not known.", str(failure), "correct the label, or leave the line out."
            ) from None
    return np.stack(arrays)


def _check_lengths(table: Table, lengths: NDArray[np.int64], least: int) -> None:
    short = np.flatnonzero(lengths < least)
    if short.size:
        row = int(short[0])
        raise table.error(
            row,
            "The text is too short.",
            f"it gives {int(lengths[row])} tokens; {least} are needed: {table.texts[row]!r:.60}",
            "leave the line out.",
        )


def _least(spec: TensorSpec, manifest: Manifest) -> int:
    """The narrowest an input may be."""
    dim = spec.shape[1]
    return dim if isinstance(dim, int) else manifest.dimensions[dim].min


def _most(spec: TensorSpec, manifest: Manifest, text: TextSpec) -> int:
    """The widest an input may be."""
    dim = spec.shape[1]
    most = dim if isinstance(dim, int) else manifest.dimensions[dim].max
    return text.max_length if most is None else most
