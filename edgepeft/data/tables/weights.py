"""Weights of examples: those of a column, or those that give every class the same weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import WrongColumns
from edgepeft.data.labels import BALANCED, number, only_label, weights_label
from edgepeft.data.records import Records
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted


@dataclass(frozen=True)
class Weighted:
    """A data set with a weight for each example.

    Attributes:
        dataset: The data set.
        name: Name of the weights in a batch.
        weights: float32 ``[examples]``.
    """

    dataset: Dataset
    name: str
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the examples at the given indices, with their weights."""
        return {**self.dataset.batch(rows), self.name: self.weights[rows]}


def class_weights(labels: Array, classes: int, ignore_index: int | None = None) -> NDArray[np.float64]:
    """Return a weight for each class, examples / (classes · examples of the class), as scikit-learn's ``balanced``.

    A class without examples has the weight 1.
    """
    counts = np.bincount(labels[labels != ignore_index].astype(np.int64), minlength=classes)
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)


def weighted(dataset: Dataset, manifest: Manifest, source: str, records: Records | None = None) -> Dataset:
    """Return the data set with weights, if the bundle's loss reads any.

    They are those of the column of this name. Without one, weights named ``balanced`` are counted in the data itself.

    Raises:
        DataError: There is no such column, or a weight is not a number of 0 or more.
    """
    spec = weights_label(manifest)
    if spec is None:
        return dataset
    if records is not None and spec.name in records.columns:
        return Weighted(dataset, spec.name, _of_column(records, spec.name))
    label = only_label(manifest)
    if spec.name != BALANCED or label.classes is None or len(label.shape) != 1:
        raise WrongColumns(
            f"{source} has no weights of examples, which the bundle's loss reads.",
            context=f"columns: {', '.join(records.columns)}" if records is not None else None,
            hint=f"add a column {spec.name!r} to a table, or give the data as .npz.",
        )
    # A copy without the features, such as images, would need a protocol of its own; labels are read once.
    chunks = np.array_split(np.arange(len(dataset)), max(1, len(dataset) // 256))
    labels = np.concatenate([np.asarray(dataset.batch(rows)[label.name]) for rows in chunks])
    weights = class_weights(labels, label.classes, label.ignore_index)
    names = manifest.classes or tuple(map(str, range(label.classes)))
    shown = ", ".join(f"{name} {weight:.3g}" for name, weight in list(zip(names, weights, strict=False))[:8])
    notice(f"{source}: weights of classes: {shown}{' …' if len(weights) > 8 else ''}.")
    counted = labels != label.ignore_index
    each = np.where(counted, weights[np.where(counted, labels, 0)], 1.0)
    return Weighted(dataset, spec.name, each.astype(np.float32))


def _of_column(records: Records, name: str) -> NDArray[np.float32]:
    weights = []
    for line, (cell,) in records.rows([name]):
        weight = number(cell)
        if weight is None or weight < 0:
            facts = f"column {quoted(name)}: expected a number of 0 or more, found {quoted(cell)}"
            raise records.error(line, "The weight of an example is no weight.", facts, "correct it.")
        weights.append(weight)
    return np.asarray(weights, np.float32)
