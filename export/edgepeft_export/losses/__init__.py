"""Losses as ONNX nodes behind the model's outputs."""

from edgepeft_export.losses.base import Labels, Loss, LossError, LossTerms, class_labels
from edgepeft_export.losses.builtin import FIRST_LOGITS, L1, MSE, BCEWithLogits, CausalLM, CrossEntropy, by_name
from edgepeft_export.losses.custom import OnnxLoss

__all__ = [
    "FIRST_LOGITS",
    "L1",
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
