"""An update back into the model it came from: a PEFT adapter, a torch state dict, or a merged ``.onnx``."""

from edgepeft.merging.dispatch import merge
from edgepeft.merging.errors import MergeError

__all__ = ["MergeError", "merge"]
