"""Convert texts to token ids, with the tokenizer in the bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.conversations.prompts import Prompter, pairs, single
from edgepeft.data.errors import NoText
from edgepeft.data.labels import BadLabel, LabelReader, notice_one_class, only_label
from edgepeft.data.table import Table, Text
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec, TensorSpec, TextSpec
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHUNK = 1024
"""Texts tokenized at a time: an encoding takes many times the memory of its ids."""

_DECODER = "decoder_ids"
"""The kind of inputs that come from labels."""

_IGNORED = -100
"""Label of ignored positions in torch and transformers."""


@dataclass(frozen=True)
class TokenLabels:
    """A label for each token.

    Attributes:
        spec: The label.
        values: int32 ``[tokens]``; the ignored index where a token has no label.
    """

    spec: LabelSpec
    values: NDArray[np.int32]

    @property
    def ignored(self) -> int:
        """The label of padding."""
        return ignored_index(self.spec)


@dataclass(frozen=True)
class Texts:
    """Tokenized texts, padded to the longest of each batch.

    Attributes:
        ids: Token ids of all texts, concatenated, int32 ``[tokens]``.
        type_ids: Segment of each token, uint8 ``[tokens]``.
        starts: Index of each text's first token, int64 ``[examples + 1]``.
        manifest: Describes the inputs.
        labels: Labels of examples by name, ``[examples, ...]`` each.
        token_labels: Labels of tokens, if there are any.
    """

    ids: NDArray[np.int32]
    type_ids: NDArray[np.uint8]
    starts: NDArray[np.int64]
    manifest: Manifest
    labels: Mapping[str, Array] = field(default_factory=dict)
    token_labels: TokenLabels | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the examples at the given indices; ids, mask and segments are ``[rows, longest]``."""
        text = self.manifest.text
        assert text is not None  # checked by text_spec_of
        specs = [spec for spec in self.manifest.inputs if text.fields.get(spec.name, _DECODER) != _DECODER]
        lengths = self.starts[rows + 1] - self.starts[rows]
        width = max(int(lengths.max(initial=0)), *(_least(spec, self.manifest) for spec in specs))
        mask = np.arange(width) < lengths[:, None]
        position = np.where(mask, self.starts[rows, None] + np.arange(width), 0)
        ids = np.where(mask, self.ids[position], text.pad_id)
        values = {"ids": ids, "attention_mask": mask, "type_ids": np.where(mask, self.type_ids[position], 0)}
        arrays = {spec.name: values[text.fields[spec.name]].astype(spec.dtype) for spec in specs}
        labels = self.token_labels
        if labels is not None:
            padded = np.where(mask, labels.values[position], labels.ignored)
            arrays[labels.spec.name] = padded.astype(labels.spec.dtype)
        return arrays | {name: array[rows] for name, array in self.labels.items()}


def texts_of(
    ids: Sequence[NDArray[np.int32]],
    manifest: Manifest,
    *,
    type_ids: Sequence[NDArray[np.uint8]] | None = None,
    labels: Mapping[str, Array] | None = None,
    token_labels: Sequence[NDArray[np.int32]] | None = None,
) -> Texts:
    """Return texts of one array of token ids each, with a label for each of their tokens, or for each text."""
    flat, lengths = np.concatenate(ids), [len(row) for row in ids]
    types = np.zeros(len(flat), np.uint8) if type_ids is None else np.concatenate(type_ids)
    own = None if token_labels is None else TokenLabels(only_label(manifest), np.concatenate(token_labels))
    return Texts(flat, types, np.cumsum([0, *lengths], dtype=np.int64), manifest, labels or {}, own)


def tokenized(table: Table, bundle: Bundle, read_label: LabelReader | None) -> Texts:
    """Tokenize the texts of a table once, cut to the bundle's maximum length.

    Args:
        table: Texts and labels.
        bundle: Contains ``tokenizer.json``; its manifest names the inputs for ids, mask and segments.
        read_label: Converts the labels to arrays; ``None`` if the table has none.
    """
    manifest = bundle.manifest
    ids, types = encoded(table, bundle)  # first: a bundle that accepts no text is a greater mistake than a label
    empty = sum(not "".join(text).strip() for text in table.texts)
    if empty:
        notice(f"{table.source}: {empty} of {len(table.texts)} texts are empty.")
    labels = None if read_label is None or table.labels is None else _labels(table, read_label, manifest)
    check_lengths(table, ids, 1)
    by_name = {} if labels is None else {manifest.labels[0].name: labels}
    return texts_of(ids, manifest, type_ids=types, labels=by_name)


def continued(table: Table, bundle: Bundle, *, labelled: bool) -> Texts:
    """Tokenize texts of which a causal language model learns every token, if labels are needed."""
    ids, types = encoded(table, bundle)
    check_lengths(table, ids, 2 if labelled else 1)
    return texts_of(ids, bundle.manifest, type_ids=types, token_labels=ids if labelled else None)


def answered(table: Table, bundle: Bundle, template: str | None = None) -> Texts:
    """Tokenize prompts (the table's texts) and answers (its labels). A causal model learns only the answers.

    Args:
        table: Texts and labels.
        bundle: The bundle of a causal language model, with ``tokenizer.json``.
        template: Template of the prompts, instead of the bundle's own.
    """
    manifest = bundle.manifest
    longest = longest_of(manifest, text_spec_of(manifest))
    tokenized_pairs = list(pairs(table, Prompter(bundle, template), longest))
    notice_cut(table, [pair.tokens for pair in tokenized_pairs], longest)
    ignored = ignored_index(only_label(manifest))
    learned = [
        np.where(np.arange(len(pair.ids)) >= len(pair.ids) - pair.answer, pair.ids, ignored).astype(np.int32)
        for pair in tokenized_pairs
    ]
    return texts_of([pair.ids for pair in tokenized_pairs], manifest, token_labels=learned)


def prompted(table: Table, bundle: Bundle, template: str | None = None) -> Texts:
    """Tokenize prompts without answers, cut on the left to the bundle's maximum length."""
    manifest = bundle.manifest
    longest, prompter = longest_of(manifest, text_spec_of(manifest)), Prompter(bundle, template)
    whole = [prompter.prompt(text) for text in single(table)]
    notice_cut(table, [len(ids) for ids in whole], longest)
    ids = [np.asarray(ids[-longest:], np.int32) for ids in whole]
    check_lengths(table, ids, 1)
    return texts_of(ids, manifest)


def ignored_index(label: LabelSpec) -> int:
    """Return the label of positions that do not count."""
    return _IGNORED if label.ignore_index is None else label.ignore_index


def longest_of(manifest: Manifest, text: TextSpec) -> int:
    """Return the largest number of tokens that a text may have."""
    return min(text.max_length, *(_most(spec, manifest, text) for spec in manifest.inputs if spec.name in text.fields))


def text_spec_of(manifest: Manifest, beside: Collection[str] = ()) -> TextSpec:
    """Return how texts become inputs: all of them but those ``beside`` the text, which are images or recordings."""
    spec = manifest.text
    inputs = [tensor.name for tensor in manifest.inputs]
    if spec is None:
        raise NoText(
            "The bundle does not accept text.",
            context=f"its inputs: {', '.join(inputs)}",
            hint="give a folder with one folder of images per class."
            if manifest.image is not None
            else "give the data as .npz, or prepare the bundle with a text specification and a tokenizer.",
        )
    other = [name for name in inputs if name not in spec.fields and name not in beside]
    if other:
        raise NoText(
            f"The bundle has inputs that text does not provide: {', '.join(other)}.",
            context=f"text provides: {', '.join(spec.fields)}",
            hint="give the data as .npz, with an array for each input and label.",
        )
    return spec


def encoded(
    table: Table, bundle: Bundle, beside: Collection[str] = ()
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.uint8]]]:
    """Return token ids and segments of each text or pair, cut to the bundle's maximum length.

    Args:
        table: The texts.
        bundle: Contains ``tokenizer.json``.
        beside: Inputs that are not text.
    """
    longest = longest_of(bundle.manifest, text_spec_of(bundle.manifest, beside))
    tokenizer, whole = tokenizer_of(bundle), _Whole(bundle)
    tokenizer.enable_truncation(longest)
    ids, types, tokens = list[NDArray[np.int32]](), list[NDArray[np.uint8]](), list[int]()
    for start in range(0, len(table.texts), _CHUNK):
        texts = table.texts[start : start + _CHUNK]
        for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
            ids.append(np.asarray(encoding.ids, np.int32))
            types.append(np.asarray(encoding.type_ids, np.uint8))
            tokens.append(whole.count(text) if encoding.overflowing else len(encoding.ids))
    notice_cut(table, tokens, longest)
    return ids, types


class _Whole:
    """Counts the tokens of texts that are cut."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return tokenizer_of(self._bundle)

    def count(self, text: Text) -> int:
        return len(self._tokenizer.encode(*((text,) if isinstance(text, str) else text)).ids)


def notice_cut(table: Table, tokens: Sequence[int], longest: int) -> None:
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
    stacked = np.stack(arrays)
    if not ignored:
        notice_one_class(table.source, stacked, manifest)
    return stacked


def check_lengths(table: Table, ids: Sequence[NDArray[np.int32]], least: int) -> None:
    """Refuse a text with fewer tokens than this."""
    row = next((row for row, own in enumerate(ids) if len(own) < least), None)
    if row is not None:
        raise table.error(
            row,
            "The text is too short.",
            f"it has {len(ids[row])} tokens; at least {least} are needed: {quoted(table.texts[row])}",
            "leave the line out.",
        )


def _least(spec: TensorSpec, manifest: Manifest) -> int:
    """Return the smallest width of an input."""
    dim = spec.shape[-1]
    return dim if isinstance(dim, int) else manifest.dimensions[dim].min


def _most(spec: TensorSpec, manifest: Manifest, text: TextSpec) -> int:
    """Return the largest width of an input."""
    dim = spec.shape[-1]
    most = dim if isinstance(dim, int) else manifest.dimensions[dim].max
    return text.max_length if most is None else most
