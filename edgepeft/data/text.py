"""Convert texts to token ids, with the tokenizer in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.conversations.prompts import Prompter, pairs, single
from edgepeft.data.errors import NoText
from edgepeft.data.labels import BadLabel, LabelReader, only_label
from edgepeft.data.table import Table, Text
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import LabelSpec, Manifest, TensorSpec, TextSpec
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHUNK = 1024
"""Texts tokenized at a time: an encoding takes many times the memory of its ids."""

_IGNORED = -100
"""Label of ignored positions in torch and transformers."""


@dataclass(frozen=True)
class Texts:
    """Tokenized texts, padded to the longest of each batch.

    Attributes:
        ids: Token ids of all texts, concatenated, int32 ``[tokens]``.
        type_ids: Segment of each token, uint8 ``[tokens]``.
        starts: Index of each text's first token, int64 ``[examples + 1]``.
        labels: ``[examples, ...]``; ``None`` if there are none, or if the ids themselves are the labels.
        manifest: Describes the inputs.
        next_token: The label whose values are the ids, with ``ignore_index`` on padding; ``None`` if there is none.
        learned: Whether a token's id is a label, bool ``[tokens]``: false for prompts; ``None`` means all tokens.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8]
    starts: NDArray[np.int64]
    labels: Array | None
    manifest: Manifest
    next_token: LabelSpec | None = None
    learned: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the examples at the given indices; ids, mask and segments are ``[rows, longest]``."""
        text = self.manifest.text
        assert text is not None  # checked by text_spec_of
        lengths = self.starts[rows + 1] - self.starts[rows]
        width = max(int(lengths.max(initial=0)), *(_least(spec, self.manifest) for spec in self.manifest.inputs))
        mask = np.arange(width) < lengths[:, None]
        position = np.where(mask, self.starts[rows, None] + np.arange(width), 0)
        ids = np.where(mask, self.ids[position], text.pad_id)
        values = {"ids": ids, "attention_mask": mask, "type_ids": np.where(mask, self.type_ids[position], 0)}
        arrays = {spec.name: values[text.fields[spec.name]].astype(spec.dtype) for spec in self.manifest.inputs}
        if self.next_token is not None:
            ignored = _IGNORED if self.next_token.ignore_index is None else self.next_token.ignore_index
            learned = mask if self.learned is None else mask & self.learned[position]
            arrays[self.next_token.name] = np.where(learned, ids, ignored).astype(self.next_token.dtype)
        if self.labels is not None:
            arrays[self.manifest.labels[0].name] = self.labels[rows]
        return arrays


def tokenized(table: Table, bundle: Bundle, read_label: LabelReader | None, *, labelled: bool) -> Texts:
    """Tokenize the texts of a table once, cut to the bundle's maximum length.

    Args:
        table: Texts and labels.
        bundle: Contains ``tokenizer.json``; its manifest names the inputs for ids, mask and segments.
        read_label: Converts the labels to arrays; ``None`` if the table has none.
        labelled: Whether the ids of a causal language model are also its labels.
    """
    manifest = bundle.manifest
    spec = text_spec_of(manifest)
    next_token = only_label(manifest) if labelled and manifest.loss.kind == "causal_lm" else None
    labels = None if read_label is None or table.labels is None else _labels(table, read_label, manifest)
    encoded = _encode(table, bundle, longest_of(manifest, spec))
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


def answered(table: Table, bundle: Bundle, template: str | None = None) -> Texts:
    """Tokenize prompts (the table's texts) and answers (its labels). A causal model learns only the answers.

    Args:
        table: Texts and labels.
        bundle: The bundle of a causal language model, with ``tokenizer.json``.
        template: Template of the prompts, instead of the bundle's own.
    """
    manifest = bundle.manifest
    spec = text_spec_of(manifest)
    longest = longest_of(manifest, spec)
    tokenized_pairs = list(pairs(table, Prompter(bundle, template), longest))
    _notice_cut(table, [pair.tokens for pair in tokenized_pairs], longest)
    ids = np.concatenate([pair.ids for pair in tokenized_pairs])
    starts = np.cumsum([0, *(len(pair.ids) for pair in tokenized_pairs)])
    learned = np.concatenate([np.arange(len(pair.ids)) >= len(pair.ids) - pair.answer for pair in tokenized_pairs])
    return Texts(ids, np.zeros(len(ids), np.uint8), starts, None, manifest, only_label(manifest), learned)


def prompted(table: Table, bundle: Bundle, template: str | None = None) -> Texts:
    """Tokenize prompts without answers, cut on the left to the bundle's maximum length."""
    manifest = bundle.manifest
    longest, prompter = longest_of(manifest, text_spec_of(manifest)), Prompter(bundle, template)
    whole = [prompter.prompt(text) for text in single(table)]
    _notice_cut(table, [len(ids) for ids in whole], longest)
    encoded = [np.asarray(ids[-longest:], np.int32) for ids in whole]
    _check_lengths(table, np.asarray([len(ids) for ids in encoded]), 1)
    ids, starts = np.concatenate(encoded), np.cumsum([0, *map(len, encoded)])
    return Texts(ids, np.zeros(len(ids), np.uint8), starts, None, manifest)


def longest_of(manifest: Manifest, text: TextSpec) -> int:
    """Return the largest number of tokens that a text may have."""
    return min(text.max_length, *(_most(spec, manifest, text) for spec in manifest.inputs))


def text_spec_of(manifest: Manifest) -> TextSpec:
    spec = manifest.text
    inputs = [tensor.name for tensor in manifest.inputs]
    if spec is None:
        raise NoText(
            "The bundle does not take text.",
            context=f"its inputs: {', '.join(inputs)}",
            hint="give a folder with one folder of images per class."
            if manifest.image is not None
            else "give the data as .npz, or prepare the bundle with a text specification and a tokenizer.",
        )
    other = [name for name in inputs if name not in spec.fields]
    if other:
        raise NoText(
            f"The bundle has inputs that text does not provide: {', '.join(other)}.",
            context=f"text provides: {', '.join(spec.fields)}",
            hint="give the data as .npz, with an array for each input and label.",
        )
    return spec


def _encode(table: Table, bundle: Bundle, longest: int) -> list[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
    tokenizer, whole = tokenizer_of(bundle), _Whole(bundle)
    tokenizer.enable_truncation(longest)
    encoded, tokens = [], []
    for start in range(0, len(table.texts), _CHUNK):
        texts = table.texts[start : start + _CHUNK]
        for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
            encoded.append((np.asarray(encoding.ids, np.int32), np.asarray(encoding.type_ids, np.uint8)))
            tokens.append(whole.count(text) if encoding.overflowing else len(encoding.ids))
    _notice_cut(table, tokens, longest)
    return encoded


class _Whole:
    """Counts the tokens of texts that are cut."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizer_of(self._bundle)

    def count(self, text: Text) -> int:
        return len(self._tokenizer.encode(*((text,) if isinstance(text, str) else text)).ids)


def _notice_cut(table: Table, tokens: Sequence[int], longest: int) -> None:
    """Report how many texts are longer than the model accepts."""
    cut = [count for count in tokens if count > longest]
    if cut:
        notice(
            f"{table.source}: {len(cut)} of {len(tokens)} texts are cut to {longest} tokens; "
            f"the longest has {max(cut)}."
        )


def _labels(table: Table, read: LabelReader, manifest: Manifest) -> Array:
    arrays = []
    for row, value in enumerate(table.labels or ()):
        try:
            arrays.append(read(value))
        except BadLabel as failure:
            raise table.error(
                row, "The label is not known.", str(failure), "correct the label, or leave the line out."
            ) from None
    spec = only_label(manifest)
    ignored = 0 if spec.ignore_index is None else sum(bool((array == spec.ignore_index).all()) for array in arrays)
    if ignored and spec.classes is not None:
        notice(
            f"{table.source}: {ignored} of {len(arrays)} examples have the label {spec.ignore_index} and do not count."
        )
    return np.stack(arrays)


def _check_lengths(table: Table, lengths: NDArray[np.int64], least: int) -> None:
    short = np.flatnonzero(lengths < least)
    if short.size:
        row = int(short[0])
        raise table.error(
            row,
            "The text is too short.",
            f"it has {int(lengths[row])} tokens; at least {least} are needed: {quoted(table.texts[row])}",
            "leave the line out.",
        )


def _least(spec: TensorSpec, manifest: Manifest) -> int:
    """Return the smallest width of an input."""
    dim = spec.shape[1]
    return dim if isinstance(dim, int) else manifest.dimensions[dim].min


def _most(spec: TensorSpec, manifest: Manifest, text: TextSpec) -> int:
    """Return the largest width of an input."""
    dim = spec.shape[1]
    most = dim if isinstance(dim, int) else manifest.dimensions[dim].max
    return text.max_length if most is None else most
