"""The device runtime of edgepeft: fine-tunes a prepared bundle on stock onnxruntime, with numpy and nothing else.

    from edgepeft_runtime import Trainer

    with Trainer.open("bundle", state="state") as trainer:
        trainer.fit({"x": x, "labels": y}, epochs=3)
        trainer.save_update("update.safetensors")

Names are loaded when they are first used: reading a manifest or an error needs no onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepeft_runtime.bundle.bundle import Bundle
    from edgepeft_runtime.bundle.manifest import Manifest
    from edgepeft_runtime.data.datasets import Arrays, Dataset, read_npz
    from edgepeft_runtime.engine.evaluate import Evaluation
    from edgepeft_runtime.engine.tasks import Tasks
    from edgepeft_runtime.errors import (
        BatchError,
        BundleError,
        DataError,
        EdgepeftError,
        FleetError,
        StateError,
        TrainingError,
        UpdateError,
    )
    from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
    from edgepeft_runtime.train.limits import Limits, Pause
    from edgepeft_runtime.train.options import FitOptions
    from edgepeft_runtime.train.records import EpochRecord, FitReport, Progress
    from edgepeft_runtime.train.trainer import Trainer
    from edgepeft_runtime.train.update import Update, check_update, read_update, write_update
    from edgepeft_runtime.version import VERSION as __version__

_ERRORS = "BatchError BundleError DataError EdgepeftError FleetError StateError TrainingError UpdateError"
_HOMES = {
    "bundle.bundle": "Bundle",
    "data.datasets": "Arrays Dataset read_npz",
    "errors": _ERRORS,
    "engine.evaluate": "Evaluation",
    "engine.tasks": "Tasks",
    "train.limits": "Limits Pause",
    "train.options": "FitOptions",
    "bundle.manifest": "Manifest",
    "train.records": "EpochRecord FitReport Progress",
    "files.tensorfile": "read_tensors write_tensors",
    "train.trainer": "Trainer",
    "train.update": "Update check_update read_update write_update",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Arrays",
    "BatchError",
    "Bundle",
    "BundleError",
    "DataError",
    "Dataset",
    "EdgepeftError",
    "EpochRecord",
    "Evaluation",
    "FitOptions",
    "FitReport",
    "FleetError",
    "Limits",
    "Manifest",
    "Pause",
    "Progress",
    "StateError",
    "Tasks",
    "Trainer",
    "TrainingError",
    "Update",
    "UpdateError",
    "__version__",
    "check_update",
    "read_npz",
    "read_tensors",
    "read_update",
    "write_tensors",
    "write_update",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("edgepeft_runtime.version").VERSION
    if name not in _HOME_OF:
        raise AttributeError(f"module 'edgepeft_runtime' has no attribute {name!r}")
    return getattr(import_module(f"edgepeft_runtime.{_HOME_OF[name]}"), name)
