"""The artifacts of ONNX Runtime Training 1.19, made from a bundle."""

from edgepeft_export.errors import OrtTrainingError
from edgepeft_export.ort_training.artifacts import GRADIENTS, OrtTraining, export_ort_training

__all__ = ["GRADIENTS", "OrtTraining", "OrtTrainingError", "export_ort_training"]
