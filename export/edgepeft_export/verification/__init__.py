"""Runs an exported graph and compares it with its source, before anything is built on it."""

from edgepeft_export.errors import VerificationError
from edgepeft_export.verification.compare import FLOAT32, HALF, QUANTIZED, Example, Verified, difference
from edgepeft_export.verification.graph import GraphRun
from edgepeft_export.verification.randomness import refuse_random

__all__ = [
    "FLOAT32",
    "HALF",
    "QUANTIZED",
    "Example",
    "GraphRun",
    "VerificationError",
    "Verified",
    "difference",
    "refuse_random",
]
