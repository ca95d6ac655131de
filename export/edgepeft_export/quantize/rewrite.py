"""Rewrites the readers of a quantized weight: matmuls, look-ups, convolutions."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.custom_ops import SCORES, int8_matmul
from edgepeft_export.graph.edit import replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.expansion import Expansion, expand, stored
from edgepeft_export.graph.int4 import Int4Matrix, Int8Array, to_int4
from edgepeft_export.graph.match import added_vector, operand
from edgepeft_export.graph.rounding import (
    Float32Array,
    Int8Matrix,
    column_sums,
    to_int8,
)
from edgepeft_export.graph.shapes import dims_of, rank
from edgepeft_export.graph.smoothing import Smoothing
from edgepeft_export.quantization import Matrices, Quantization
from edgepeft_export.quantize.scores import is_head, is_score
from edgepeft_export.quantize.weights import Weight

Matmul = Callable[[ir.Value, ir.Value | None, ir.Value], ir.Value]
"""``(x, bias, old)`` to the matmul, which has the shape of ``old``."""

Rows = Callable[[ir.Value], ir.Value]
"""Indices to the rows of a table."""

_THREADS = 4
"""Most threads that round weights: numpy does so without the interpreter's lock, and memory limits it beyond that."""


class Quantizer:
    """Quantizes weights of one graph. New nodes are appended, so the graph has to be sorted afterwards.

    Args:
        graph: the graph.
        settings: of the quantization.
        rows, rounded, matrices: as in ``edgepeft_export.quantization.QuantizationReport``.
    """

    def __init__(
        self,
        graph: ir.Graph,
        settings: Quantization,
        rows: Mapping[str, Smoothing | None],
        rounded: Mapping[str, Int8Matrix],
        matrices: Matrices,
    ) -> None:
        self._emit = Emitter(graph)
        self._settings = settings
        self._rows, self._rounded, self._matrices = rows, rounded, matrices
        self._smoothed: dict[tuple[ir.Value, str], ir.Value] = {}

    def quantize(self, weights: Sequence[Weight]) -> None:
        """Replace weights by integers, for all their readers."""
        with ThreadPoolExecutor(max(1, min(_THREADS, os.cpu_count() or 1))) as threads:
            list(threads.map(self._round, (weight for weight in weights if not weight.is_kernel)))
        for weight in weights:
            if weight.is_kernel:
                self._kernel(weight)
            elif self._has_8_bits(weight):
                self._int8(weight)
            else:
                self._int4(weight)

    def _round(self, weight: Weight) -> None:
        """Round a weight before the graph changes; no thread changes it."""
        if not self._has_8_bits(weight):
            self._to_int4(weight)
        elif weight.name not in self._rounded:
            self._to_int8(weight, self._smoothing(weight))

    def _to_int8(self, weight: Weight, smoothing: Smoothing | None) -> Int8Matrix:
        source, both = weight.stored, not is_head(weight)
        reciprocals = None if smoothing is None else smoothing.reciprocals
        make = functools.partial(to_int8, source, weight.channels, both=both, reciprocals=reciprocals)
        how = "int8", weight.channels, both, None if reciprocals is None else reciprocals.tobytes()
        return self._matrices.matrix(weight.name, source, how, make)

    def _to_int4(self, weight: Weight) -> Int4Matrix:
        def make() -> Int4Matrix:
            array = weight.array
            return to_int4(array if weight.channels == 1 else array.T, self._settings.block)

        how = "int4", weight.channels, self._settings.block
        return self._matrices.matrix(weight.name, weight.stored, how, make)

    def _has_8_bits(self, weight: Weight) -> bool:
        return self._settings.compute == "int8" or needs_8_bits(weight) is not None

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
        smoothing = self._smoothing(weight)
        matrix = self._rounded.get(weight.name) or self._to_int8(weight, smoothing)
        values = self._stored(weight, "int8", matrix.values)
        scale = self._stored(weight, "scale", matrix.scale)

        def rows(ids: ir.Value) -> ir.Value:
            integers = self._emit.op("Cast", self._emit.op("Gather", values, ids), to=ir.DataType.FLOAT.value)
            column = self._stored(weight, "scale.column", matrix.scale[:, None])
            found = self._emit.op("Mul", integers, self._emit.op("Gather", column, ids))
            return found if smoothing is None else smoothing.divided(found, self._emit)

        sums = functools.partial(column_sums, matrix.values, matrix.scale, weight.channels)
        self._rewrite(weight, self._matmul(weight, values, scale, sums, 1 - weight.channels), rows)

    def _smoothing(self, weight: Weight) -> Smoothing | None:
        """A weight of 4 bits keeps the grid of its file."""
        return self._rows.get(weight.name) if self._has_8_bits(weight) else None

    def _divided(self, x: ir.Value, smoothing: Smoothing | None) -> ir.Value:
        """``x`` as a matmul reads it. Matmuls of one activation share it."""
        if smoothing is None:
            return x
        if (x, smoothing.weight) not in self._smoothed:
            self._smoothed[x, smoothing.weight] = smoothing.divided(x, self._emit)
        return self._smoothed[x, smoothing.weight]

    def _matmul(
        self, weight: Weight, values: ir.Value, scale: ir.Value, sums: Callable[[], Float32Array], trans_b: int
    ) -> Matmul:
        smoothing = self._smoothing(weight)
        by_row = weight.name in self._rows
        rounding = "tensor" if not by_row else "fine" if smoothing is not None and smoothing.fine else "row"

        def matmul(x: ir.Value, bias: ir.Value | None, old: ir.Value) -> ir.Value:
            return int8_matmul(
                self._emit,
                *(self._divided(x, smoothing), values, scale, None, bias, None),
                self._stored(weight, "sums", sums()) if rounding == "row" and _has_zero_points(weight) else None,
                trans_b=trans_b,
                rounding=rounding,
                gradient=SCORES if is_score(old) else self._settings.gradient,
            )

        return matmul

    def _int4(self, weight: Weight) -> None:
        """Store 4 bits, expanded to int8 for a matmul; of a look-up table, only the rows that are looked up."""
        four = self._to_int4(weight)
        if any(use.node.op_type == "Gather" for use in weight.value.uses()):
            self._rewrite(weight, None, lambda ids: self._rows_of_int4(weight, four, ids))
            return
        expanded = expand(self._emit, stored(four, f"{weight.name}.int4", self._emit.stored))
        scale = self._stored(weight, "scale", four.scale)

        def sums() -> Float32Array:
            return column_sums(four.integers(), four.scale, 1)

        self._rewrite(weight, self._matmul(weight, expanded, scale, sums, 0), None)

    def _rows_of_int4(self, weight: Weight, four: Int4Matrix, ids: ir.Value) -> ir.Value:
        """Rows of a table, stored one after the other: a few of them are a small part of the file."""
        emit, (groups, group, _) = self._emit, four.bytes.shape

        def store(name: str, array: Int8Array) -> ir.Value:
            return emit.stored(name, np.ascontiguousarray(np.moveaxis(array, 2, 0)))

        table = stored(four, f"{weight.name}.int4", store)
        flat = emit.op("Reshape", ids, emit.ints(-1))

        def looked_up(part: ir.Value, shape: tuple[int, int]) -> ir.Value:
            rows = emit.op("Transpose", emit.op("Gather", part, flat), perm=[1, 2, 0])
            rows.shape = ir.Shape([*shape, None])
            return rows

        steps = looked_up(table.steps, (2 * groups, 1))
        offsets = None if table.offsets is None else looked_up(table.offsets, (2 * groups, 1))
        expansion = Expansion(looked_up(table.bytes, (groups, group)), steps, offsets, four.inputs)
        integers = emit.op("Transpose", expand(emit, expansion), perm=[1, 0])
        column = emit.op("Gather", self._stored(weight, "scale.column", four.scale[:, None]), flat)
        rows = emit.op("Mul", emit.op("Cast", integers, to=ir.DataType.FLOAT.value), column)
        shape = emit.op("Concat", emit.shape_of(ids), emit.ints(four.inputs), axis=0)
        return rows if rank(ids) == 1 else emit.op("Reshape", rows, shape, allowzero=1)

    def _rewrite(self, weight: Weight, matmul: Matmul | None, rows: Rows | None) -> None:
        for node in [use.node for use in weight.value.uses()]:
            self._emit.scope = node.name or ""
            if node.op_type == "Gather":
                assert rows is not None
                replace_value(node.outputs[0], rows(operand(node, 1)))
            else:
                assert matmul is not None
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


def _has_zero_points(weight: Weight) -> bool:
    """Whether rows have a zero point each: the correction of the product costs more than it saves where it is wide."""
    outputs, inputs = dims_of(weight.value)[weight.channels], dims_of(weight.value)[1 - weight.channels]
    return isinstance(outputs, int) and isinstance(inputs, int) and outputs <= inputs


def needs_8_bits(weight: Weight) -> str | None:
    """Why a weight has 8 bits where others have 4; ``None`` where it needs no more.

    A head in 4 bits alone raises the perplexity of a language model by 8 %.
    """
    if weight.is_kernel:
        return "a kernel"
    readers = [use.node for use in weight.value.uses()]
    if any(is_score(node.outputs[0]) for node in readers):
        return "it computes the scores"
    return "both looked up and multiplied" if len({node.op_type == "Gather" for node in readers}) > 1 else None


def _gemm_bias(node: ir.Node) -> ir.Value | None:
    """The third input where it is a plain vector, which kernels add themselves."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = bias is not None and rank(bias) == 1 and float(node.attributes.get_float("beta", 1.0)) == 1.0
    return bias if plain and bias is not None and dims_of(bias) == dims_of(node.outputs[0])[-1:] else None
