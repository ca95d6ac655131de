"""Errors of merging."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class MergeError(EdgepeftError):
    """An update cannot be written in the requested format."""


class StackDoesNotFit(MergeError, code="stack-does-not-fit"):
    """A stack of updates has a higher rank than the target format can have."""


class NotQuantized(MergeError, code="not-quantized"):
    """The bundle has no quantized weight."""


class MaskedWeights(MergeError, code="masked-weights"):
    """Merging would fill the zeros of pruned weights. Keep the pairs beside the weights."""


class NotInAdapter(MergeError, code="not-in-adapter"):
    """Some trained tensors have no counterpart in the adapter format. Merge to torch or onnx."""


class NotAPeftModel(MergeError, code="not-a-peft-model"):
    """The bundle was not made from a PEFT model, so its update cannot become a PEFT adapter."""


class HalfAPair(MergeError, code="half-a-pair"):
    """Only B of some pairs was trained, which the format cannot express. Merge to onnx or torch."""


class UnknownAdapterKey(MergeError, code="unknown-adapter-key"):
    """peft would not find all tensors of the adapter. Prepare the bundle again."""
