"""Targets: ratios to peers measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass

TIME, MEMORY, SIZE = "ms_per_step", "peak_rss_mb", "bundle_bytes"
CHECKPOINT = "checkpoint"
"""The fp32 checkpoint, listed instead of a side in a comparison of sizes."""


@dataclass(frozen=True)
class Target:
    """``side``'s ``figure`` is at most ``bound`` times that of ``peer``, in ``case``."""

    figure: str
    side: str
    peer: str
    bound: float
    case: str = "minilm"


TARGETS = (
    Target(TIME, "edgepeft-int8", "torch-eager", 0.23),
    Target(TIME, "edgepeft-int8", "torch-compile", 0.24),
    Target(TIME, "edgepeft-int8", "ort-training", 0.32),
    Target(TIME, "edgepeft-int8", "ort-inference-fp32", 0.9),
    Target(MEMORY, "edgepeft-int8", "torch-eager", 0.34),
    Target(MEMORY, "edgepeft-int8", "ort-training", 0.36),
    Target(MEMORY, "edgepeft-int8-memory", "torch-eager", 0.25),
    Target(SIZE, "edgepeft-int8", CHECKPOINT, 0.3),
    Target(SIZE, "edgepeft-int4", CHECKPOINT, 0.2),
)

PEERS = ("torch-eager", "torch-compile", "ort-training", "ort-inference-fp32")
"""The baseline of every device side, in every case."""

POINTS = {"int8": 0.5, "int4": 1.5, "int8-pruned": 2.0}
"""Column of the accuracy table to the percentage points that its mean may be below PyTorch's."""
