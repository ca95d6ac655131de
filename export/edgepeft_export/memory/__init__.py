"""The memory of a train step: what its activations take, and how to take less by computing them a second time."""

from edgepeft_export.memory.liveness import Polynomial, activation_peaks
from edgepeft_export.memory.recompute import MODES, recompute

__all__ = ["MODES", "Polynomial", "activation_peaks", "recompute"]
