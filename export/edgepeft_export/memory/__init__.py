"""The memory of a train step: the size of its activations, and recomputation that reduces it."""

from edgepeft_export.memory.liveness import Polynomial, activation_peaks

__all__ = ["Polynomial", "activation_peaks"]
