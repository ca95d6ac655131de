"""Reverse-mode automatic differentiation of ONNX graphs, as ordinary ONNX operators."""

from edgepeft_export.autodiff.registry import NoGradientForCase
from edgepeft_export.autodiff.walk import Gap, NoGradientRule, differentiate, gaps

__all__ = ["Gap", "NoGradientForCase", "NoGradientRule", "differentiate", "gaps"]
