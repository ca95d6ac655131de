"""What cannot become official artifacts."""

from __future__ import annotations

from edgepeft_runtime.errors import EdgepeftError


class OrtTrainingError(EdgepeftError):
    """ONNX Runtime Training cannot run this, or its tools are not there."""
