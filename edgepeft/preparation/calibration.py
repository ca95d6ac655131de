"""Load a few batches of a user's data, on which quantization and pruning are measured on the workstation."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from edgepeft.data import load
from edgepeft.data.tables.weights import class_weights
from edgepeft.methods.freeze import Freeze
from edgepeft.preparation.errors import NotOfClasses
from edgepeft.preparation.prepare import LossLike, prepare
from edgepeft.preparation.stand_in import StandIn, stand_in
from edgepeft.sources.source import Source
from edgepeft_export.forward.torch_source.module import name_inputs
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.batch import NamedBatch
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.metrics.predictions import BINARY

BATCHES, SIZE = 4, 4


@dataclass(frozen=True)
class Sample:
    """Labelled data of a user, and what it is read for.

    Args:
        source: The source to prepare. It does not change.
        data: A file or folder in a format that ``edgepeft train`` reads.
        loss: As in ``edgepeft.prepare``.
        trainable: Names or patterns of the initializers that train, for an ``.onnx`` file.
        text_column, label_column: Names of the columns.
    """

    source: Source
    data: str | Path
    loss: LossLike | None = None
    trainable: tuple[str, ...] = ()
    text_column: str | Sequence[str] = "text"
    label_column: str = "label"


def calibration_batches(sample: Sample) -> list[NamedBatch]:
    """Return batches of the data as the model is fed them, labels included, spread evenly over all examples.

    A device reads data by the manifest of a bundle. So a bundle is made here, of a module with the model's inputs and
    outputs, or of a copy of the model with one trained tensor if its outputs have other sizes than its inputs.

    Raises:
        DataError: The data cannot be read, or does not fit the model.
    """
    with _examples(sample) as (_, examples):
        count = min(BATCHES * SIZE, len(examples))
        rows = np.linspace(0, len(examples) - 1, count).astype(np.int64)
        return [examples.batch(rows[start : start + SIZE]) for start in range(0, count, SIZE)]


def balanced_class_weights(sample: Sample) -> tuple[float, ...]:
    """Return a weight for each class, so that all weigh the same in the data.

    Raises:
        NotOfClasses: The loss has no label of one class.
        DataError: The data cannot be read, or does not fit the model.
    """
    with _examples(sample) as (manifest, examples):
        label = manifest.labels[0] if manifest.labels else None
        if label is None or label.classes is None:
            raise NotOfClasses(
                f"Classes cannot be counted: the labels of the loss {manifest.loss.kind} are no classes.",
                context=None,
                hint="choose cross_entropy or focal, or give the numbers.",
            )
        labels = np.concatenate([part.ravel() for part in _labels(examples, label.name)])
        return tuple(class_weights(labels, label.classes, label.ignore_index).tolist())


def balanced_pos_weight(sample: Sample) -> tuple[float, ...]:
    """Return negatives / positives of each label in the data; 1 for a label that is always or never positive.

    Raises:
        NotOfClasses: The loss has no labels of yes-or-no questions.
        DataError: The data cannot be read, or does not fit the model.
    """
    with _examples(sample) as (manifest, examples):
        if manifest.loss.kind not in BINARY:
            raise NotOfClasses(
                f"Positive labels cannot be counted: those of the loss {manifest.loss.kind} are no questions.",
                context=None,
                hint="choose bce_with_logits.",
            )
        labels = [part.reshape(len(part), -1) for part in _labels(examples, manifest.labels[0].name)]
        positive = np.concatenate(labels).mean(axis=0, dtype=np.float64)
        known = (positive > 0) & (positive < 1)
        return tuple(np.where(known, (1 - positive) / np.where(known, positive, 1), 1.0).tolist())


def _labels(examples: Dataset, name: str) -> Iterator[Array]:
    """Read the labels of all examples, some hundreds at a time: a batch contains the inputs too."""
    for rows in np.array_split(np.arange(len(examples)), max(1, len(examples) // 256)):
        yield np.asarray(examples.batch(rows)[name])


@contextmanager
def _examples(sample: Sample) -> Iterator[tuple[Manifest, Dataset]]:
    source, method = sample.source, None
    if isinstance(source.model, nn.Module):
        source = _with_stand_in(source, source.model)
    if isinstance(source.model, nn.Module) and not isinstance(source.model, StandIn):
        last = [name for name, _ in source.model.named_parameters()][-1]
        source, method = replace(source, model=copy.deepcopy(source.model)), Freeze(train=(last,))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        made = prepare(source, out=out, method=method, loss=sample.loss, trainable=sample.trainable, generation=False)
        bundle = Bundle.open(made.bundle)
        yield (
            bundle.manifest,
            load(sample.data, bundle, text_column=sample.text_column, label_column=sample.label_column),
        )


def _with_stand_in(source: Source, model: nn.Module) -> Source:
    """Return the source with a module of the same inputs and outputs, if there is one."""
    assert source.example_inputs is not None
    inputs = name_inputs(model, source.example_inputs)
    module = stand_in(model, inputs)
    return source if module is None else replace(source, model=module, example_inputs=inputs)
