"""Write an update as a PEFT adapter, a torch state dict, an ONNX adapter, or a merged ``.onnx`` model."""

from edgepeft.merging.dispatch import merge
from edgepeft.merging.errors import MergeError

__all__ = ["MergeError", "merge"]
