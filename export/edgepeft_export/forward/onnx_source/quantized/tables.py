"""Ensures that rows of a quantized look-up table are read by operators that every supported ONNX Runtime has.

Pattern: ``GatherBlockQuantized(table, ids, scales)``, which came with ONNX Runtime 1.20.
Algebra: ``(Gather(bytes, ids), split into integers, - zero_points) · Gather(scales, ids)``, on the same bytes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.forward.onnx_source.quantized.lookup import dequantized_rows, split_bytes
from edgepeft_export.forward.onnx_source.quantized.shapes import gather_width
from edgepeft_export.graph.constants import initializer_array, initializer_tensor
from edgepeft_export.graph.custom_ops import CONTRIB
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, operands, present
from edgepeft_export.graph.rounding import unpack_nibbles
from edgepeft_export.graph.shapes import rank

Float32Array = NDArray[np.float32]

_PLAIN = {"gather_axis": 0, "quantize_axis": 1}
"""The supported attributes, which are the defaults."""


def raise_tables(graph: ir.Graph, emit: Emitter) -> None:
    """Raise look-ups of whole rows, quantized along the row, in place."""
    for node in [node for node in graph if node.op_type == "GatherBlockQuantized" and node.domain == CONTRIB]:
        width = gather_width(node)
        if width is not None and width % 2 == 0 and _is_plain(node):
            emit.scope = node.name or ""
            replace_value(node.outputs[0], _rows(node, emit, width))


def _is_plain(node: ir.Node) -> bool:
    """Whether rows are looked up in constants with float32 scales, and blocks lie along the rows."""
    table, _, scales, zero_points = (*node.inputs, None)[:4]
    constants = [value for value in (table, scales, zero_points) if value is not None]
    if scales is None or scales.dtype != ir.DataType.FLOAT or any(value.const_value is None for value in constants):
        return False
    return all(node.attributes.get_int(name, default) == default for name, default in _PLAIN.items())


def _rows(node: ir.Node, emit: Emitter, width: int) -> ir.Value:
    table, ids, scales = operands(node, 3)
    integers, grid, leading = _integers(node, emit), initializer_array(scales), [0] * rank(ids)
    block = node.attributes.get_int("block_size", 128)
    padded = grid.shape[1] * block
    if padded != width:  # the last block is not whole
        integers = emit.op("Pad", integers, emit.ints(*leading, 0, *leading, padded - width))
    column = emit.stored(f"{table.name}.zeros", _zero_points(node, grid.shape)[..., None])
    factor = emit.stored(f"{table.name}.scale.blocks", np.asarray(grid, np.float32)[..., None])
    return dequantized_rows(emit, integers, ids, factor, emit.op("Gather", column, ids), block, width)


def _integers(node: ir.Node, emit: Emitter) -> ir.Value:
    """The rows' integers as floats, two per byte where they have 4 bits. INT4 ones are offset by 8."""
    table, ids = operands(node, 2)
    tensor = initializer_tensor(table)
    packed = np.frombuffer(tensor.tobytes(), np.uint8).reshape(tensor.shape.numpy()[0], -1)
    rows = emit.op("Gather", emit.stored(f"{table.name}.bytes", packed), ids)
    if _is_8_bits(node):
        return emit.op("Cast", rows, to=ir.DataType.FLOAT.value)
    if tensor.dtype == ir.DataType.INT4:  # two's complement: flipping the highest bit adds 8
        rows = emit.op("BitwiseXor", rows, emit.constant(np.array(0x88, np.uint8)))
    return emit.op("Reshape", split_bytes(emit, rows), emit.ints(*[0] * rank(ids), 2 * packed.shape[1]))


def _is_8_bits(node: ir.Node) -> bool:
    table = node.inputs[0]
    return table is not None and table.dtype == ir.DataType.UINT8 and node.attributes.get_int("bits", 4) == 8


def _zero_points(node: ir.Node, shape: tuple[int, ...]) -> Float32Array:
    """The zero point of each block, with the offset of ``_integers``."""
    table, given = operand(node), present(node, 3)
    if given is None:
        middle = {ir.DataType.INT4: 8, ir.DataType.UINT4: 0}.get(table.dtype or ir.DataType.UINT8)
        return np.full(shape, middle if middle is not None else 128 if _is_8_bits(node) else 8, np.float32)
    array = initializer_array(given)
    if table.dtype == ir.DataType.UINT8 and not _is_8_bits(node):  # two in a byte, each row in whole bytes
        array = unpack_nibbles(array.astype(np.uint8, copy=False))[:, : shape[1]]
    return array.astype(np.float32) + (8 if table.dtype == ir.DataType.INT4 else 0)
