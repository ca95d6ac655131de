"""Hidden tokens of a text: adapts an encoder to texts of a domain, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import NoText
from edgepeft.data.labels import only_label
from edgepeft.data.records import Records
from edgepeft.data.table import read_table
from edgepeft.data.tasks.base import Model, Reading, Task, text_inputs
from edgepeft.data.text import Texts, continued, ignored_index
from edgepeft.data.tokenizer import tokenizer_of
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array

MASK = "mask"
"""Name of the id of the mask token in a manifest."""

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1
"""Probability that a token is learned, and that it is then hidden or replaced (BERT: Devlin et al. 2019)."""


@dataclass(frozen=True)
class MaskedLM(Task):
    """Every text is a row. Which of its tokens are hidden depends on its row alone, so a run can be resumed."""

    name: ClassVar[str] = "masked-lm"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    mappings: ClassVar[tuple[str, ...]] = ("MASKED_LM",)
    late: ClassVar[bool] = True
    endings: ClassVar[tuple[str, ...]] = ("ForMaskedLM",)
    text: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def special(self, model: Model) -> dict[str, int]:
        return {} if model.mask_id is None else {MASK: model.mask_id}

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model)

    def table(self, records: Records, reading: Reading) -> Dataset:
        bundle, columns = reading.bundle, reading.columns
        texts = continued(read_table(records, columns.texts, None, known=(columns.label,)), bundle, labelled=False)
        if not reading.labelled:
            return texts
        mask = (bundle.manifest.text.special or {}).get(MASK) if bundle.manifest.text is not None else None
        if mask is None:
            raise NoText(
                "The tokenizer of the bundle has no mask token.",
                context=None,
                hint="give ids and labels as .npz, or prepare the bundle from a directory whose tokenizer has one.",
            )
        tokenizer = tokenizer_of(bundle)
        added = [id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        around = tokenizer.encode("").ids  # what a tokenizer puts around every text
        return Masked(texts, mask, np.asarray([*added, *around], np.int64), tokenizer.get_vocab_size())


@dataclass(frozen=True)
class Masked:
    """Texts in which some tokens are hidden, with these tokens as labels.

    Attributes:
        texts: The whole texts.
        mask: The token that hides others.
        special: Special tokens, which are not learned.
        size: Number of tokens of the vocabulary.
    """

    texts: Texts
    mask: int
    special: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the texts with hidden tokens, and labels that are ignored elsewhere."""
        arrays, manifest = self.texts.batch(rows), self.texts.manifest
        assert manifest.text is not None
        label = only_label(manifest)
        name = next(name for name, kind in manifest.text.fields.items() if kind == "ids")
        ids = arrays[name].copy()
        labels = np.full(ids.shape, ignored_index(label), label.dtype)
        for index, row in enumerate(rows):
            start, stop = self.texts.starts[row], self.texts.starts[row + 1]
            own = self.texts.ids[start:stop]
            chosen, read = self._hidden(own, int(row))
            labels[index, : len(own)][chosen] = own[chosen]
            ids[index, : len(own)] = read
        return {**arrays, name: ids, label.name: labels}

    def _hidden(self, ids: NDArray[np.int32], row: int) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        """Return which tokens of a row are learned, at least one if there is any, and what the model reads."""
        draw = np.random.default_rng(row)
        may = ~np.isin(ids, self.special)
        chosen = may & (draw.random(len(ids)) < CHOSEN)
        if may.any() and not chosen.any():
            chosen[draw.choice(np.flatnonzero(may))] = True
        how = draw.random(len(ids))
        read = np.where(chosen & (how < MASKED), self.mask, ids)
        other = draw.integers(0, self.size, len(ids))
        return chosen, np.where(chosen & (how >= MASKED) & (how < MASKED + RANDOM), other, read).astype(np.int32)
