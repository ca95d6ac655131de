"""A few batches of a user's data, for what is decided by measuring on the workstation: rounding, pruning."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from edgepeft.data import load
from edgepeft.methods.freeze import Freeze
from edgepeft.preparation.prepare import LossLike, prepare
from edgepeft.sources.load import Source
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch

BATCHES, SIZE = 4, 4


def calibration_batches(
    source: Source,
    data: str | Path,
    *,
    loss: LossLike | None = None,
    trainable: tuple[str, ...] = (),
    text_column: str = "text",
    label_column: str = "label",
) -> list[Batch]:
    """Batches of ``data`` as the model is fed them, labels included, taken evenly from all of it.

    Data is read by way of a bundle, as a device does; it is made of a copy of the model in which one tensor trains.

    Args:
        source: what will be prepared; stays as it is.
        data: a file or folder in a format that ``edgepeft train`` reads.
        loss: as in :func:`edgepeft.prepare`.
        trainable: of an ``.onnx`` file, what trains.
        text_column, label_column: names of the columns.

    Raises:
        DataError: the data cannot be read, or does not fit the model.
    """
    method = None
    if isinstance(source.model, nn.Module):
        last = [name for name, _ in source.model.named_parameters()][-1]
        source, method = replace(source, model=copy.deepcopy(source.model)), Freeze(train=(last,))
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(source, out=Path(folder) / "bundle", method=method, loss=loss, trainable=trainable)
        examples = load(data, Bundle.open(made.bundle), text_column=text_column, label_column=label_column)
        count = min(BATCHES * SIZE, len(examples))
        rows = np.linspace(0, len(examples) - 1, count).astype(np.int64)
        return [examples.batch(rows[start : start + SIZE]) for start in range(0, count, SIZE)]
