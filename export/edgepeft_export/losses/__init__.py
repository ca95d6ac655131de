"""Losses as ONNX nodes after the model's outputs."""

from edgepeft_export.errors import LossError
from edgepeft_export.losses.base import Labels, Loss, LossTerms, class_labels
from edgepeft_export.losses.builtin.bce_with_logits import BCEWithLogits
from edgepeft_export.losses.builtin.causal_lm import CausalLM
from edgepeft_export.losses.builtin.cross_entropy import CrossEntropy
from edgepeft_export.losses.builtin.l1 import L1
from edgepeft_export.losses.builtin.mse import MSE
from edgepeft_export.losses.custom import OnnxLoss
from edgepeft_export.losses.emitting import FIRST_LOGITS
from edgepeft_export.losses.registry import LOSSES, by_name

__all__ = [
    "FIRST_LOGITS",
    "L1",
    "LOSSES",
    "MSE",
    "BCEWithLogits",
    "CausalLM",
    "CrossEntropy",
    "Labels",
    "Loss",
    "LossError",
    "LossTerms",
    "OnnxLoss",
    "by_name",
    "class_labels",
]
