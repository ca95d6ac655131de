"""Writes discrete Fourier transforms in the form of a graph's operator set."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter

_AXIS_IS_INPUT = 20


def transform(emit: Emitter, x: ir.Value, axis: int, *, inverse: bool = False, onesided: int = 0) -> ir.Value:
    """The transform along an axis, of pairs or, with a last axis of size 1, of real numbers."""
    options = {"inverse": int(inverse), "onesided": onesided}
    if emit.graph.opset_imports.get("", _AXIS_IS_INPUT) < _AXIS_IS_INPUT:
        return emit.op("DFT", x, domain="", axis=axis, **options)
    return emit.op("DFT", x, None, emit.constant(np.asarray(axis, np.int64)), domain="", **options)
