"""Rewrites the readers of a quantized weight: matmuls, look-ups, convolutions."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.custom_ops import CONTRIB, SCORES, int8_matmul
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.lookup import dequantized_rows, split_bytes
from edgepeft_export.graph.match import added_vector, operand
from edgepeft_export.graph.rounding import Int4Matrix, to_int4, to_int8
from edgepeft_export.graph.shapes import dims_of, rank
from edgepeft_export.quantization import Quantization
from edgepeft_export.quantize.scores import is_score
from edgepeft_export.quantize.weights import Weight

Matmul = Callable[[ir.Value, ir.Value | None, ir.Value], ir.Value]
"""``(x, bias, old)`` to the matmul, which has the shape of ``old``."""


class Quantizer:
    """Quantizes weights of one graph. New nodes are appended, so the graph has to be sorted afterwards.

    Args:
        graph: the graph.
        settings: of the quantization.
        rows: names of the weights before whose matmuls activations are rounded with a scale per row.
    """

    def __init__(self, graph: ir.Graph, settings: Quantization, rows: Collection[str] = ()) -> None:
        self._emit = Emitter(graph)
        self._settings = settings
        self._rows = rows

    def quantize(self, weight: Weight) -> None:
        """Replace a weight by integers, for all its readers."""
        if weight.is_kernel:
            self._kernel(weight)
        elif self._settings.compute == "int8":
            self._int8(weight)
        else:
            self._int4(weight)

    def _stored(self, weight: Weight, suffix: str, array: NDArray[np.generic]) -> ir.Value:
        return self._emit.stored(f"{weight.name}.{suffix}", array)

    def _kernel(self, weight: Weight) -> None:
        """Store a kernel as int8 and dequantize it when read: stock integer convolutions are slower than float ones."""
        matrix = to_int8(weight.array, weight.channels)
        values = self._stored(weight, "int8", matrix.values)
        scale = self._stored(weight, "scale", matrix.scale)
        dequantized = self._emit.op("DequantizeLinear", values, scale, axis=weight.channels)
        dequantized.shape, dequantized.name = weight.value.shape, f"{weight.name}.dequantized"
        weight.value.replace_all_uses_with(dequantized)

    def _int8(self, weight: Weight) -> None:
        matrix = to_int8(weight.array, weight.channels)
        values = self._stored(weight, "int8", matrix.values)
        scale = self._stored(weight, "scale", matrix.scale)

        def matmul(x: ir.Value, bias: ir.Value | None, old: ir.Value) -> ir.Value:
            transposed, gradient = 1 - weight.channels, SCORES if is_score(old) else self._settings.gradient
            rounding = "row" if weight.name in self._rows else "tensor"
            inputs = (x, values, scale, None, bias)
            return int8_matmul(self._emit, *inputs, trans_b=transposed, rounding=rounding, gradient=gradient)

        def rows(ids: ir.Value) -> ir.Value:
            integers = self._emit.op("Cast", self._emit.op("Gather", values, ids), to=ir.DataType.FLOAT.value)
            column = self._stored(weight, "scale.column", matrix.scale[:, None])
            return self._emit.op("Mul", integers, self._emit.op("Gather", column, ids))

        self._rewrite(weight, matmul, rows)

    def _int4(self, weight: Weight) -> None:
        array = weight.array
        matrix = to_int4(array if weight.channels == 0 else array.T, self._settings.block)
        values = self._stored(weight, "int4", matrix.values)
        scales = self._stored(weight, "scale", matrix.scales.reshape(-1))
        width = dims_of(weight.value)[1 - weight.channels]
        assert isinstance(width, int)

        def matmul(x: ir.Value, bias: ir.Value | None, old: ir.Value) -> ir.Value:
            y = self._emit.op(
                "MatMulNBits",
                x,
                values,
                scales,
                domain=CONTRIB,
                K=width,
                N=matrix.values.shape[0],
                bits=4,
                block_size=matrix.block,
                accuracy_level=4,  # rounds activations to 8 bits; otherwise 8-bit weights are 100 times slower
            )
            y.shape = old.shape
            return y if bias is None else self._emit.op("Add", y, bias)

        self._rewrite(weight, matmul, lambda ids: self._rows_of_int4(weight, matrix, ids, width))

    def _rows_of_int4(self, weight: Weight, matrix: Int4Matrix, ids: ir.Value, width: int) -> ir.Value:
        """Rows of a 4-bit table, looked up as bytes and then split into halves."""
        emit, table = self._emit, self._stored(weight, "int4", matrix.values)
        integers = split_bytes(emit, emit.op("Gather", table, ids))
        scales = self._stored(weight, "scale.blocks", matrix.scales[..., None])
        zero = emit.constant(np.array(8, np.float32))
        return dequantized_rows(emit, integers, ids, scales, zero, matrix.block, width)

    def _rewrite(self, weight: Weight, matmul: Matmul, rows: Callable[[ir.Value], ir.Value]) -> None:
        for node in [use.node for use in weight.value.uses()]:
            self._emit.scope = node.name or ""
            if node.op_type == "Gather":
                replace_value(node.outputs[0], rows(operand(node, 1)))
            else:
                self._rewrite_matmul(node, matmul)

    def _rewrite_matmul(self, node: ir.Node, matmul: Matmul) -> None:
        x, bias, result = operand(node), None, node.outputs[0]
        if node.op_type == "Gemm":
            bias, factor = _gemm_bias(node), float(node.attributes.get_float("alpha", 1.0))
            x = x if factor == 1.0 else self._emit.op("Mul", x, self._emit.scalar(factor, like=x))
            y = matmul(x, bias, result)
            rest = node.inputs[2] if len(node.inputs) > 2 and bias is None else None
            if rest is not None:
                beta = float(node.attributes.get_float("beta", 1.0))
                rest = rest if beta == 1.0 else self._emit.op("Mul", rest, self._emit.scalar(beta, like=rest))
                y = self._emit.op("Add", y, rest)
        else:
            bias, total = added_vector(result, dims_of(result)[-1]) or (None, result)
            bias, result = (bias, total) if bias is not None and bias.producer() is None else (None, result)
            y = matmul(x, bias, result)
        replace_value(result, y)


def _gemm_bias(node: ir.Node) -> ir.Value | None:
    """The third input where it is a plain vector, which kernels add themselves."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = bias is not None and rank(bias) == 1 and float(node.attributes.get_float("beta", 1.0)) == 1.0
    return bias if plain and bias is not None and dims_of(bias) == dims_of(node.outputs[0])[-1:] else None
