"""Errors of the preparation of a bundle."""

from __future__ import annotations

from edgepeft_runtime.errors import BundleError, EdgepeftError


class PruneNeedsTorch(EdgepeftError, code="prune-needs-torch"):
    """An .onnx file cannot be pruned. Prune before the model is exported."""


class MethodNeedsTorch(EdgepeftError, code="method-needs-torch"):
    """The method cannot be attached to an .onnx file. Choose one that can, or name the initializers to train."""


class WrongOption(EdgepeftError, code="wrong-option"):
    """An option of ``prepare`` has a value of another type. The hint names the option for a value of this type."""


class AccuracyLost(EdgepeftError, code="accuracy-lost"):
    """The quantized model is too far from the fp32 one. Keep sensitive weights, or accept the loss."""


class NothingToPick(BundleError, code="nothing-to-pick"):
    """The bundle has no sparse tensors whose elements are still to be chosen."""


class NotOfClasses(EdgepeftError, code="not-of-classes"):
    """Weights of classes were asked for, and the loss has no labels of classes."""
