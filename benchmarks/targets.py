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


_FP32, _INT8, _INFERENCE, _TORCH = "edgepeft-fp32", "edgepeft-int8", "ort-inference-fp32", "torch-eager"

TARGETS = (
    Target(TIME, _INT8, _TORCH, 0.2),
    Target(TIME, _INT8, "torch-compile", 0.24),
    Target(TIME, _INT8, "ort-training", 0.32),
    Target(TIME, _INT8, _INFERENCE, 0.75),
    Target(TIME, _FP32, _INFERENCE, 1.55),
    Target(TIME, _FP32, "onnxsim", 1.0),
    Target(TIME, _FP32, "executorch", 1.0),
    Target(MEMORY, _FP32, "onnxsim", 1.0),
    Target(MEMORY, _FP32, "executorch", 1.0),
    Target(MEMORY, _INT8, _TORCH, 0.25),
    Target(MEMORY, _INT8, "ort-training", 0.36),
    Target(MEMORY, "edgepeft-int8-memory", _TORCH, 0.22),
    Target(SIZE, _INT8, CHECKPOINT, 0.3),
    Target(SIZE, "edgepeft-int4", CHECKPOINT, 0.2),
    Target(TIME, _FP32, _INFERENCE, 5.0, "mobilenet-lora"),
    Target(TIME, _FP32, _TORCH, 0.3, "mobilenet-lora"),
    Target(TIME, _INT8, _FP32, 1.0, "mobilenet-lora"),
    Target(TIME, _FP32, "onnxsim", 1.0, "mobilenet-lora"),
    Target(TIME, _FP32, "executorch", 1.0, "mobilenet-lora"),
    Target(MEMORY, _FP32, "onnxsim", 1.0, "mobilenet-lora"),
    Target(MEMORY, _FP32, "executorch", 1.0, "mobilenet-lora"),
    Target(TIME, _FP32, _INFERENCE, 5.0, "mobilenet-bias"),
    Target(TIME, _FP32, _TORCH, 0.42, "mobilenet-bias"),
    Target(TIME, _FP32, _INFERENCE, 4.0, "resnet"),
    Target(TIME, _FP32, _INFERENCE, 4.0, "unet"),
    Target(TIME, _FP32, _TORCH, 0.5, "lstm"),
    Target(TIME, _FP32, _TORCH, 0.5, "gru"),
    Target(TIME, _INT8, _INFERENCE, 1.0, "decoder"),
    Target(TIME, _FP32, _INFERENCE, 1.9, "decoder"),
)
"""Those of MiniLM and of the decoder in int8 are for processors with VNNI."""

PEERS = ("torch-eager", "torch-compile", "ort-training", "onnxsim", "executorch", "ort-inference-fp32")
"""The baseline of every device side, in every case."""

POINTS = {"int8": 0.5, "int4": 1.5, "int8-pruned": 2.0}
"""Column of the accuracy table to the percentage points that its mean may be below PyTorch's."""
