"""Optimizers as ONNX graphs: a file for each, which the registry finds."""

from edgepeft_export.optimizers.adamw import AdamW
from edgepeft_export.optimizers.base import Optimizer
from edgepeft_export.optimizers.lion import Lion
from edgepeft_export.optimizers.registry import OPTIMIZERS, by_name
from edgepeft_export.optimizers.sgd import SGD

__all__ = ["OPTIMIZERS", "SGD", "AdamW", "Lion", "Optimizer", "by_name"]
