"""Predict a model's outputs for any number of examples."""

from __future__ import annotations

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.checks import positive
from edgepeft_runtime.data.batch import Batch, checked_batch
from edgepeft_runtime.data.sources import source_of
from edgepeft_runtime.engine.engine import Engine, TrainState
from edgepeft_runtime.files.tensorfile import Array


def predict(
    engine: Engine, manifest: Manifest, state: TrainState, inputs: Batch, batch_size: int | None = None
) -> dict[str, Array]:
    """Return the outputs by name.

    Args:
        engine: runs the bundle's graphs.
        manifest: the bundle's.
        state: parameters to predict with.
        inputs: arrays by name. Labels among them are left out.
        batch_size: cut the first axis into batches of this size; ``None`` runs all examples at once.

    Raises:
        BatchError: the inputs do not fit the bundle.
    """
    cut = [inputs] if batch_size is None else source_of(inputs, manifest, positive("batch_size", batch_size)).batches(0)
    parts = [engine.infer(state, checked_batch(batch, manifest, labels=False)) for batch in cut]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts[1:] else parts[0]
