"""Rewrites the readers of a packed weight: products, look-ups, convolutions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.graph.composites import CONTRIB, int8_matmul
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of, rank
from edgepeft_export.quantize.packing import Int4Matrix, to_int4, to_int8
from edgepeft_export.quantize.settings import Quantization
from edgepeft_export.quantize.weights import Weight

Product = Callable[[ir.Value, ir.Value | None, ir.Value], ir.Value]
"""``(x, bias, old)`` to the product, which has the shape of ``old``."""


class Packer:
    """Packs weights of one graph; new nodes are appended, so the graph has to be sorted afterwards."""

    def __init__(self, graph: ir.Graph, settings: Quantization) -> None:
        self._emit = Emitter(graph)
        self._settings = settings

    def pack(self, weight: Weight) -> None:
        """Put integers in the place of a weight, and let all its readers read them."""
        if weight.is_kernel:
            self._kernel(weight)
        elif self._settings.compute == "int8":
            self._int8(weight)
        else:
            self._int4(weight)

    def _stored(self, weight: Weight, suffix: str, array: NDArray[np.generic]) -> ir.Value:
        return self._emit.stored(f"{weight.name}.{suffix}", array)

    def _kernel(self, weight: Weight) -> None:
        """Stored as int8 and unpacked when it is read: stock integer convolutions are slower than float ones."""
        matrix = to_int8(_tensor(weight).numpy(), weight.channels)
        values = self._stored(weight, "int8", matrix.values)
        scale = self._stored(weight, "scale", matrix.scale)
        unpacked = self._emit.op("DequantizeLinear", values, scale, axis=weight.channels)
        unpacked.shape, unpacked.name = weight.value.shape, f"{weight.name}.unpacked"
        weight.value.replace_all_uses_with(unpacked)

    def _int8(self, weight: Weight) -> None:
        matrix = to_int8(_tensor(weight).numpy(), weight.channels)
        values = self._stored(weight, "int8", matrix.values)
        scale = self._stored(weight, "scale", matrix.scale)

        def product(x: ir.Value, bias: ir.Value | None, _: ir.Value) -> ir.Value:
            turned = 1 - weight.channels
            return int8_matmul(
                self._emit, x, values, scale, None, bias, trans_b=turned, gradient=self._settings.gradient
            )

        def rows(ids: ir.Value) -> ir.Value:
            found = self._emit.op("Cast", self._emit.op("Gather", values, ids), to=ir.DataType.FLOAT.value)
            column = self._stored(weight, "scale.column", matrix.scale[:, None])
            return self._emit.op("Mul", found, self._emit.op("Gather", column, ids))

        self._rewrite(weight, product, rows)

    def _int4(self, weight: Weight) -> None:
        array = _tensor(weight).numpy()
        matrix = to_int4(array if weight.channels == 0 else array.T, self._settings.block)
        values = self._stored(weight, "int4", matrix.values)
        scales = self._stored(weight, "scale", matrix.scales.reshape(-1))
        width = dims_of(weight.value)[1 - weight.channels]
        assert isinstance(width, int)

        def product(x: ir.Value, bias: ir.Value | None, old: ir.Value) -> ir.Value:
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
                accuracy_level=4,  # activations rounded to 8 bits: without it, 8-bit weights are 100 times slower
            )
            y.shape = old.shape
            return y if bias is None else self._emit.op("Add", y, bias)

        self._rewrite(weight, product, lambda ids: self._rows_of_int4(weight, matrix, ids, width))

    def _rows_of_int4(self, weight: Weight, matrix: Int4Matrix, ids: ir.Value, width: int) -> ir.Value:
        """Rows of a 4-bit table: looked up as bytes, then split into halves."""
        emit, (_, blocks, half) = self._emit, matrix.values.shape
        table = self._stored(weight, "int4", matrix.values)
        found = emit.op("Gather", table, ids)
        low = emit.op("BitwiseAnd", found, emit.constant(np.array(15, np.uint8)))
        high = emit.op("BitShift", found, emit.constant(np.array(4, np.uint8)), direction="RIGHT")
        parts = [emit.op("Unsqueeze", part, emit.ints(-1)) for part in (low, high)]
        both = emit.op("Concat", *parts, axis=-1)
        steps = emit.op("Cast", both, to=ir.DataType.FLOAT.value)
        leading = [0] * rank(ids)
        grouped = emit.op("Reshape", steps, emit.ints(*leading, blocks, 2 * half))
        centred = emit.op("Sub", grouped, emit.constant(np.array(8, np.float32)))
        scale = emit.op("Gather", self._stored(weight, "scale.blocks", matrix.scales[..., None]), ids)
        flat = emit.op("Reshape", emit.op("Mul", centred, scale), emit.ints(*leading, blocks * 2 * half))
        if blocks * 2 * half == width:
            return flat
        return emit.op("Slice", flat, emit.ints(0), emit.ints(width), emit.ints(-1))

    def _rewrite(self, weight: Weight, product: Product, rows: Callable[[ir.Value], ir.Value]) -> None:
        for node in [use.node for use in weight.value.uses()]:
            self._emit.scope = node.name or ""
            if node.op_type == "Gather":
                ids = node.inputs[1]
                assert ids is not None
                _take_place(node.outputs[0], rows(ids))
            else:
                self._rewrite_product(node, product)

    def _rewrite_product(self, node: ir.Node, product: Product) -> None:
        x, bias, result = node.inputs[0], None, node.outputs[0]
        assert x is not None
        if node.op_type == "Gemm":
            bias, factor = _gemm_bias(node), float(node.attributes.get_float("alpha", 1.0))
            x = x if factor == 1.0 else self._emit.op("Mul", x, self._emit.scalar(factor, like=x))
            y = product(x, bias, result)
            rest = node.inputs[2] if len(node.inputs) > 2 and bias is None else None
            if rest is not None:
                beta = float(node.attributes.get_float("beta", 1.0))
                rest = rest if beta == 1.0 else self._emit.op("Mul", rest, self._emit.scalar(beta, like=rest))
                y = self._emit.op("Add", y, rest)
        else:
            added = _added_bias(result)
            bias, result = added if added is not None else (None, result)
            y = product(x, bias, result)
        _take_place(result, y)


def _tensor(weight: Weight) -> ir.TensorProtocol:
    assert weight.value.const_value is not None
    return weight.value.const_value


def _gemm_bias(node: ir.Node) -> ir.Value | None:
    """The third input where it is a plain vector: kernels add that themselves."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = bias is not None and rank(bias) == 1 and float(node.attributes.get_float("beta", 1.0)) == 1.0
    return bias if plain and bias is not None and dims_of(bias) == dims_of(node.outputs[0])[-1:] else None


def _added_bias(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The vector that is added to a product by its only reader, and the sum."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    bias = add.inputs[1 - uses[0].idx]
    if bias is None or bias.producer() is not None or bias.shape is None or rank(bias) != 1:
        return None
    return (bias, add.outputs[0]) if dims_of(bias) == dims_of(value)[-1:] else None


def _take_place(old: ir.Value, new: ir.Value) -> None:
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
