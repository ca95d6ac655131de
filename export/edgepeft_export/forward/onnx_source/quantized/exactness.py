"""Ensures that integer products with a weight from a file come out the same on every machine.

Without VNNI, x86 kernels for uint8 activations and int8 weights add two products in 16 bits, and cut off what does not
fit. A file made with ``reduce_range`` fits; of one made without, the backward product, whose activations are gradients
around a zero point of 128, would be noise. Kernels for two uint8 matrices are exact everywhere, so such a weight is
moved by 128, and its zero point with it, when a runtime loads the graph: the file keeps its bytes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.emit import Emitter

_LARGEST_PAIR = 128
"""Largest sum of two neighbours of one sign: 255 times as much still fits into 16 bits."""


def exact(w: ir.Value, zero_point: ir.Value | None, emit: Emitter) -> tuple[ir.Value, ir.Value | None]:
    """A constant int8 matrix and its zero point, as uint8 where kernels could cut off its products."""
    if w.const_value is None or w.const_value.dtype != ir.DataType.INT8 or _fits(w.const_value.numpy()):
        return w, zero_point
    if zero_point is not None and zero_point.const_value is None:
        return w, zero_point
    turned = emit.op("BitwiseXor", w, emit.constant(np.array(-128, np.int8)))
    turned.dtype = ir.DataType.INT8
    moved = emit.op("Cast", turned, to=ir.DataType.UINT8.value)
    moved.shape = w.shape
    return moved, emit.constant(_moved(zero_point))


def _moved(zero_point: ir.Value | None) -> NDArray[np.uint8]:
    """The zero point, 128 larger; one number where all channels have the same."""
    if zero_point is None or zero_point.const_value is None:
        return np.array(128, np.uint8)
    numbers = (zero_point.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)
    return np.array(numbers.reshape(-1)[0]) if np.unique(numbers).size == 1 else numbers


def _fits(matrix: NDArray[np.int8]) -> bool:
    """Whether neighbours along both axes, which the forward and the backward product add, stay small."""
    return all(_largest_pair(rows.astype(np.int16)) <= _LARGEST_PAIR for rows in (matrix, matrix.T))


def _largest_pair(rows: NDArray[np.int16]) -> int:
    pairs = rows[: len(rows) // 2 * 2].reshape(-1, 2, rows.shape[1])
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=1), -np.minimum(pairs, 0).sum(axis=1))
    return int(sums.max(initial=0))
