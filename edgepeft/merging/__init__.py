"""An update back into the model it came from: a PEFT adapter, a torch state dict, or a merged ``.onnx``."""

from edgepeft.merging.dispatch import MergeError, merge

__all__ = ["MergeError", "merge"]
