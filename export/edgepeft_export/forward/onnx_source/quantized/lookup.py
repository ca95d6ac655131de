"""Rows of a quantized table, looked up by operators that every supported ONNX Runtime has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of, rank


def split_bytes(emit: Emitter, packed: ir.Value) -> ir.Value:
    """The two half bytes of each byte as floats, the low one first, along a new last axis."""
    low = emit.op("BitwiseAnd", packed, emit.constant(np.array(15, np.uint8)))
    high = emit.op("BitShift", packed, emit.constant(np.array(4, np.uint8)), direction="RIGHT")
    halves = [emit.op("Unsqueeze", half, emit.ints(-1)) for half in (low, high)]
    return emit.op("Cast", emit.op("Concat", *halves, axis=-1), to=ir.DataType.FLOAT.value)


def dequantized_rows(
    emit: Emitter, integers: ir.Value, ids: ir.Value, scales: ir.Value, zero_points: ir.Value, block: int, width: int
) -> ir.Value:
    """``(integers - zero_points) · scales[ids]`` in blocks, without the padding of the last one.

    Args:
        integers: as floats, [*ids, ...] with whole blocks after the axes of ``ids``.
        ids: the rows that were looked up.
        scales: [rows, blocks, 1].
        zero_points: broadcast to [*ids, blocks, block].
        block: elements per scale.
        width: elements of a row.
    """
    leading, blocks = [0] * rank(ids), dims_of(scales)[1]
    assert isinstance(blocks, int)
    grouped = emit.op("Reshape", integers, emit.ints(*leading, blocks, block))
    scaled = emit.op("Mul", emit.op("Sub", grouped, zero_points), emit.op("Gather", scales, ids))
    flat = emit.op("Reshape", scaled, emit.ints(*leading, blocks * block))
    if blocks * block == width:
        return flat
    return emit.op("Slice", flat, emit.ints(0), emit.ints(width), emit.ints(-1))
