"""Reverse-mode automatic differentiation of ONNX graphs, as ordinary ONNX operators."""

from edgepeft_export.autodiff import branched, mapped, repeated  # noqa: F401  (register rules)
from edgepeft_export.autodiff.registry import NoGradientForCase
from edgepeft_export.autodiff.walk import (
    MissingRule,
    NoGradientRule,
    dependents,
    differentiate,
    differentiate_from,
    missing_rules,
)

__all__ = [
    "MissingRule",
    "NoGradientForCase",
    "NoGradientRule",
    "dependents",
    "differentiate",
    "differentiate_from",
    "missing_rules",
]
