"""Steps and masks as factors: numbers 0 and 1 to multiply a gradient by, from kernels that use all threads.

``Where`` would express them too, but ONNX Runtime runs it on one thread, and a mask without a pattern costs it ten
times a multiplication (``docs/KERNELS.md``). A product differs from a selection where the gradient is inf or NaN: it
stays visible instead of becoming 0, and the step is refused either way. The gradient of a model's own ``Where``
selects, because models protect themselves from inf and NaN with it.
"""

from __future__ import annotations

from math import ldexp

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dtype_of

_STEEP = float(np.float32(3.4e38))
_EXACT = 100
"""2^100 is an exact factor: 2^100 (x - bound) has the right sign, and at least 1 for any float32 x beyond the bound."""


def masked(dy: ir.Value, mask: ir.Value, emit: Emitter) -> ir.Value:
    """``dy`` where the bool ``mask`` is true, else 0."""
    return emit.op("Mul", dy, emit.cast(mask, dtype_of(dy)))


def step(x: ir.Value, emit: Emitter) -> ir.Value:
    """1 where x > 0, else 0."""
    if x.dtype == ir.DataType.FLOAT:
        return emit.op("HardSigmoid", x, alpha=_STEEP, beta=0.0)  # clip(x · largest float, 0, 1), in one pass
    return emit.cast(emit.op("Greater", x, emit.scalar(0.0, like=x)), dtype_of(x))


def sign(x: ir.Value, emit: Emitter) -> ir.Value:
    """-1, 0 or 1. ONNX Runtime's ``Sign`` uses one thread."""
    if x.dtype != ir.DataType.FLOAT:
        return emit.op("Sign", x)
    ends = (emit.scalar(end, like=x) for end in (-1.0, 1.0))
    return emit.op("Clip", emit.op("Mul", x, emit.scalar(_STEEP, like=x)), *ends)


def between(x: ir.Value, low: float, high: float, emit: Emitter) -> ir.Value:
    """1 where low < x < high, else 0."""
    if x.dtype == ir.DataType.FLOAT and all(_scales(bound) for bound in (low, high)):
        factor = ldexp(1.0, _EXACT)
        above = emit.op("HardSigmoid", x, alpha=factor, beta=-factor * low)
        below = emit.op("HardSigmoid", x, alpha=-factor, beta=factor * high)
        return emit.op("Mul", above, below)
    above, below = emit.op("Greater", x, emit.scalar(low, like=x)), emit.op("Less", x, emit.scalar(high, like=x))
    return emit.cast(emit.op("And", above, below), dtype_of(x))


def _scales(bound: float) -> bool:
    """Whether 2^100 times the distance of a float32 from a bound neither overflows nor stays below 1."""
    return bound == 0 or 2.0**-60 < abs(bound) < 2.0**24
