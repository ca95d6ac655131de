"""Rows of several texts each, such as a question with each of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.tasks.sequences import padded
from edgepeft.data.text import Texts
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class Groups:
    """Rows of several texts, padded to the longest of a batch.

    Attributes:
        texts: The first text of each row, the second, and so on.
        manifest: Describes the inputs.
        labels: Labels of rows by name, ``[rows, ...]`` each.
    """

    texts: Sequence[Texts]
    manifest: Manifest
    labels: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts[0])

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return ids, masks and segments ``[rows, texts, longest]``."""
        text = self.manifest.text
        assert text is not None
        ids = [padded(own, rows, text.pad_id) for own in self.texts]
        types = [padded(own, rows, 0, own.type_ids) for own in self.texts]
        fixed = [spec.shape[-1] for spec in self.manifest.inputs if isinstance(spec.shape[-1], int)]
        width = max([own.shape[1] for own in ids] + fixed)
        lengths = np.stack([own.starts[rows + 1] - own.starts[rows] for own in self.texts], 1)
        values = {
            "ids": np.stack([_widened(own, width, text.pad_id) for own in ids], 1),
            "attention_mask": np.arange(width) < lengths[..., None],
            "type_ids": np.stack([_widened(own, width, 0) for own in types], 1),
        }
        arrays = {spec.name: values[text.fields[spec.name]].astype(spec.dtype) for spec in self.manifest.inputs}
        return arrays | {name: array[rows] for name, array in self.labels.items()}


def _widened(ids: NDArray[np.int64], width: int, pad: int) -> NDArray[np.int64]:
    return np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=pad)
