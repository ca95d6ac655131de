"""Ensures that integer matmuls with a weight from a file have the same result on every machine.

Pattern: a constant int8 matrix two of whose neighbours of one sign add up to more than
``edgepeft_export.graph.rounding.LARGEST_PAIR``. Kernels for uint8 activations and int8 weights may saturate there:
a file made with ``reduce_range`` fits. Of one made without, the backward matmul, whose activations are gradients around
a zero point of 128, would be noise.
Algebra: ``w - z = (w + 128) - (z + 128)``. Kernels for two uint8 matrices are exact everywhere, so weight and zero
point move by 128 when a runtime loads the graph. The bytes in the file stay the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.rounding import LARGEST_PAIR, pair_sums


def exact(w: ir.Value, zero_point: ir.Value | None, emit: Emitter) -> tuple[ir.Value, ir.Value | None]:
    """A constant int8 matrix and its zero point, as uint8 where kernels could cut off its products."""
    if w.const_value is None or w.const_value.dtype != ir.DataType.INT8 or _fits(w.const_value.numpy()):
        return w, zero_point
    if zero_point is not None and zero_point.const_value is None:
        return w, zero_point
    flipped = emit.op("BitwiseXor", w, emit.constant(np.array(-128, np.int8)))
    flipped.dtype = ir.DataType.INT8
    moved = emit.op("Cast", flipped, to=ir.DataType.UINT8.value)
    moved.shape = w.shape
    return moved, emit.constant(_moved(zero_point))


def _moved(zero_point: ir.Value | None) -> NDArray[np.uint8]:
    """The zero point plus 128, as one number where all channels have the same."""
    if zero_point is None or zero_point.const_value is None:
        return np.array(128, np.uint8)
    numbers = (zero_point.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)
    return np.array(numbers.reshape(-1)[0]) if np.unique(numbers).size == 1 else numbers


def _fits(matrix: NDArray[np.int8]) -> bool:
    """Whether neighbours along both axes, which the forward and the backward matmul add, stay small."""
    return all(pair_sums(rows.astype(np.int16)).max(initial=0) <= LARGEST_PAIR for rows in (matrix, matrix.T))
