"""The memory of a train step: the size of its activations, and recomputation that reduces it."""

from edgepeft_export.memory.liveness import Polynomial, activation_peaks
from edgepeft_export.memory.recompute import MODES, recompute

__all__ = ["MODES", "Polynomial", "activation_peaks", "recompute"]
