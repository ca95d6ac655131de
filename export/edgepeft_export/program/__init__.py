"""Programs of segments: the forward graph is cut, and equal segments share one forward and one backward graph."""

from edgepeft_export.program.library import Library
from edgepeft_export.program.step import Segmented, segmented
from edgepeft_export.program.structure import WEIGHTS, as_inputs, checked_weights

__all__ = ["WEIGHTS", "Library", "Segmented", "as_inputs", "checked_weights", "segmented"]
