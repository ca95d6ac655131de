"""Named ways to prepare a bundle; the device sides of the speed and accuracy tables differ in these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import edgepeft
from benchmarks.cases.base import Batch
from edgepeft.methods import Method, attach
from edgepeft_export.optimizers import AdamW

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "int8": {"compute": "int8"},
    # The head is new, so rounding changes many of its random classes; the tables measure accuracy after training.
    "int4": {"compute": "int4", "compression": edgepeft.Compression(allow_accuracy_loss=True)},
    "int8-memory": {"compute": "int8", "compression": edgepeft.Compression(weights="input")},
    "ort-own": {"engine": "ort-training"},
    "ort-own-int8": {"compute": "int8", "engine": "ort-training"},
    "int8-pruned": {"compute": "int8", "prune": {"heads": 0.25, "ffn": 0.3, "score": "wanda"}},
}
"""Arguments of ``edgepeft.prepare``; ``prune`` contains those of ``edgepeft.compress.Pruning``."""


def prepare_variant(
    name: str,
    source: edgepeft.Source,
    method: Method,
    optimizer: AdamW,
    out: Path,
    calibration: Sequence[Batch] | None = None,
) -> Path:
    """Prepare a bundle.

    Args:
        source: an untouched base model; it is changed.
        calibration: batches of inputs, on which the parts to prune are scored.

    Returns:
        The bundle's directory.
    """
    settings = dict(SETTINGS[name])
    assert source.example_inputs is not None and isinstance(source.model, nn.Module)
    common: dict[str, Any] = {"loss": source.loss, "optimizer": optimizer, "out": out, "classes": source.classes}
    if "prune" not in settings:
        attached = attach(method, source.model)
        return edgepeft.prepare(attached, source.example_inputs, **common, **settings).bundle
    from edgepeft.compress import Pruning

    pruning = Pruning(**settings.pop("prune"))  # precedes the adapters, so prepare attaches them
    batches = [{key: np.asarray(array) for key, array in batch.items()} for batch in calibration or ()]
    settings["compression"] = edgepeft.Compression(pruning, batches or None)
    return edgepeft.prepare(source.model, source.example_inputs, method=method, **common, **settings).bundle
