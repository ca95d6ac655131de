"""A model for inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgepeft.merging.target import Merging, Target
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class Onnx(Target):
    """A model of its own for inference, its LoRA pairs folded into the weights they adapt.

    ``keep`` leaves pairs beside quantized weights, with the device's outputs exactly. ``dequantize`` turns the weights
    into fp32 and folds the pairs, ``requantize`` quantizes the adapted weights again as they were.
    """

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    accepts_stacks: ClassVar[bool] = True
    quantized: str = setting(
        "keep", "Handling of quantized weights that have a pair.", choices=("keep", "dequantize", "requantize")
    )

    @property
    def changes_outputs(self) -> bool:
        return self.quantized != "keep"

    def write(self, merging: Merging, out: Path) -> str:
        if self.changes_outputs:
            from edgepeft.merging.to_quantized_onnx import write as write_quantized

            return write_quantized(merging.bundle, merging.parameters, out, self.quantized, merging.calibration)
        from edgepeft.merging.to_onnx import write

        return write(merging.bundle, merging.parameters, out)
