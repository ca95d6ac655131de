"""Products with a packed weight, as a bundle's inference graph has them: unpacked, and packed anew.

Int8 products are ``MatMulIntegerToFloat`` behind ``DynamicQuantizeLinear``, 4-bit ones ``MatMulNBits``, and kernels of
convolutions are unpacked by ``DequantizeLinear`` when they are read. What has zero points is not of our making, and is
left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.fold.matmuls import Product, attribute
from edgepeft_export.fold.pairs import new_initializer
from edgepeft_export.quantize.packing import to_int4, to_int8

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class PackedProduct(Product):
    """A product whose weight is packed; ``weight`` holds the integers and ``scale`` their scales.

    Attributes:
        channels: of int8, the axis of the stored integers along which scales lie.
        turned: whether the integers are transposed before they are multiplied.
    """

    scale: ir.Value
    channels: int = 0
    turned: bool = False

    @property
    def source(self) -> ir.Value:
        """What is multiplied, before it is rounded."""
        source = self.node.inputs[0]
        rounded = source.producer() if source is not None and self.node.op_type == "MatMulIntegerToFloat" else None
        source = rounded.inputs[0] if rounded is not None else source
        assert source is not None
        return source

    @property
    def bias(self) -> ir.Value | None:
        """What the node adds."""
        place = {"MatMulIntegerToFloat": 6, "Conv": 2}.get(self.node.op_type)
        return self.node.inputs[place] if place is not None and len(self.node.inputs) > place else None

    def matrix(self) -> Matrix:
        """The factor: ``[in, out]``, or ``[out, in, *kernel]`` of a convolution."""
        values, scale = (_array(value) for value in (self.weight, self.scale))
        if self.node.op_type == "MatMulNBits":
            return self._unpacked_int4(values, scale)
        shape = [1] * values.ndim
        shape[self.channels] = -1
        matrix: Matrix = values.astype(np.float64) * scale.astype(np.float64).reshape(shape)
        return matrix.T if self.turned else matrix

    def _unpacked_int4(self, values: NDArray[Any], scale: NDArray[Any]) -> Matrix:
        rows, blocks, half = values.shape
        steps = np.stack([values & 15, values >> 4], axis=-1).reshape(rows, blocks, 2 * half).astype(np.float64) - 8
        matrix = (steps * scale.astype(np.float64).reshape(rows, blocks, 1)).reshape(rows, -1)
        return matrix[:, : attribute(self.node, "K", 0)].T

    def pack(self, graph: ir.Graph, matrix: Matrix) -> None:
        """Put another matrix in its place, rounded as this one is."""
        integers: NDArray[Any]
        if self.node.op_type == "MatMulNBits":
            four = to_int4(np.ascontiguousarray(matrix.T, np.float32), attribute(self.node, "block_size", 0))
            integers, scale = four.values, four.scales
        else:
            eight = to_int8((matrix.T if self.turned else matrix).astype(np.float32), self.channels)
            integers, scale = eight.values, eight.scale
        self._read_instead(graph, self.weight, integers)
        self._read_instead(graph, self.scale, scale.reshape(_array(self.scale).shape))

    def _read_instead(self, graph: ir.Graph, old: ir.Value, array: NDArray[Any]) -> None:
        """Let this product read a new tensor; others of the old one keep it."""
        new = new_initializer(graph, f"{old.name}.merged", array)
        for node in (self.node, *(value.producer() for value in self.node.inputs if value is not None)):
            for place, value in enumerate(node.inputs if node is not None else ()):
                if value is old and node is not None:
                    node = self._own(node)
                    node.replace_input_with(place, new)

    def _own(self, node: ir.Node) -> ir.Node:
        """The node if it serves this product alone, else a copy that does: an unpacked kernel may have two readers."""
        if node is self.node or len(node.outputs[0].uses()) == 1:
            return node
        copy = ir.node(node.op_type, list(node.inputs), {name: attr.value for name, attr in node.attributes.items()})
        node.append(copy)
        for place, value in enumerate(self.node.inputs):
            if value is node.outputs[0]:
                self.node.replace_input_with(place, copy.outputs[0])
        return copy

    def unpack(self, graph: ir.Graph) -> None:
        """Make it a product with a float32 weight."""
        weight = new_initializer(graph, f"{self.weight.name}.unpacked", self.matrix().astype(np.float32))
        if self.is_conv:
            self.node.replace_input_with(1, weight)
            return
        product = ir.node("MatMul", [self.source, weight], name=f"{self.node.name}/unpacked")
        self.node.append(product)
        result = product.outputs[0]
        if self.bias is not None:
            added = ir.node("Add", [result, self.bias], name=f"{self.node.name}/bias")
            product.append(added)
            result = added.outputs[0]
        old = self.node.outputs[0]
        result.shape, result.type = old.shape, old.type
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name, old.name = old.name, None


def packed_product(value: ir.Value) -> PackedProduct | None:
    """The packed product that gives ``value``, ``None`` where something else does."""
    node = value.producer()
    if node is None:
        return None
    kind = node.op_type
    if kind == "MatMulIntegerToFloat":
        return _int8(node)
    if kind == "MatMulNBits":
        return _int4(node)
    return _kernel(node) if kind == "Conv" else None


def _int8(node: ir.Node) -> PackedProduct | None:
    weight, scale = node.inputs[1], node.inputs[3]
    rounded = node.inputs[0].producer() if node.inputs[0] is not None else None
    if weight is None or rounded is None or rounded.op_type != "DynamicQuantizeLinear" or _given(node, 5):
        return None
    transpose = weight.producer()
    turned = transpose is not None and transpose.op_type == "Transpose"
    stored = transpose.inputs[0] if transpose is not None and turned else weight
    if stored is None or not _stored(stored, scale) or stored.dtype != ir.DataType.INT8:
        return None
    assert scale is not None
    return PackedProduct(node, stored, scale, channels=0 if turned else 1, turned=turned)


def _int4(node: ir.Node) -> PackedProduct | None:
    weight, scale = node.inputs[1], node.inputs[2]
    if attribute(node, "bits", 4) != 4 or any(_given(node, place) for place in (3, 4, 5)) or not _stored(weight, scale):
        return None
    assert weight is not None and scale is not None
    return PackedProduct(node, weight, scale)


def _kernel(node: ir.Node) -> PackedProduct | None:
    unpacked = node.inputs[1].producer() if node.inputs[1] is not None else None
    if unpacked is None or unpacked.op_type != "DequantizeLinear" or _given(unpacked, 2):
        return None
    weight, scale = unpacked.inputs[:2]
    if not _stored(weight, scale) or weight is None or scale is None or weight.dtype != ir.DataType.INT8:
        return None
    return PackedProduct(node, weight, scale, channels=int(attribute(unpacked, "axis", 1)))


def _given(node: ir.Node, place: int) -> bool:
    return len(node.inputs) > place and node.inputs[place] is not None


def _stored(*values: ir.Value | None) -> bool:
    return all(value is not None and value.const_value is not None and not value.is_graph_input() for value in values)


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()
