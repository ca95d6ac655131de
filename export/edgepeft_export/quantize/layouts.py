"""Stores a large int8 matrix as it is and transposed, so that each pass reads the layout that it multiplies by.

onnxruntime would transpose it when it loads the graph, into a copy on the heap. A second layout in the bundle costs
disk and page cache, which the system can evict. Below the threshold the copy is cheap, and the bundle stays small.

Each layout has the integers that suit its product. Those of the forward pass may be compensated, which makes the error
of each weight larger and that of the product on the calibration data smaller. The gradient is another product, so the
layout of the backward pass has each weight rounded by itself, in the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from edgepeft_export.graph.constants import is_frozen
from edgepeft_export.graph.custom_ops import DOMAIN, INT8_MATMUL, TRANSPOSED
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.int4 import Int8Array
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import rank
from edgepeft_export.quantization import QuantizedTensor


def is_large(quantized: Mapping[str, QuantizedTensor], large: int) -> bool:
    """Whether the quantized tensors of a graph have ``large`` bytes or more, 4-bit ones once they are expanded."""
    return sum(tensor.elements for tensor in quantized.values()) >= large


def store_transposed(graph: ir.Graph, nearest: Mapping[str, Callable[[], Int8Array]]) -> None:
    """Give every matmul of integers its matrix in the other layout too, in place.

    The names are ``<name>`` and ``<name>.transposed``. Lowering reads one of them, and the other is removed from a
    graph without readers of it.

    Args:
        graph: is changed.
        nearest: by the name of a matrix whose errors are compensated, what its integers are without that.
    """
    emit, done = Emitter(graph), set[str]()
    for node in [node for node in graph if node.domain == DOMAIN and node.op_type == INT8_MATMUL]:
        matrix = operand(node, 1)
        if is_frozen(matrix) and rank(matrix) == 2 and matrix.name is not None:
            other = f"{matrix.name}.transposed"
            if matrix.name not in done:
                done.add(matrix.name)
                _store(matrix, other, nearest.get(matrix.name), emit, forward=1 - node.attributes.get_int("transB", 0))
            node.resize_inputs(max(len(node.inputs), TRANSPOSED + 1))
            node.replace_input_with(TRANSPOSED, graph.initializers[other])


def _store(
    matrix: ir.Value, other: str, nearest: Callable[[], Int8Array] | None, emit: Emitter, *, forward: int
) -> None:
    """Store a matrix transposed; ``forward``: whether the forward pass reads it as it is."""
    values = matrix.const_value
    assert values is not None
    transposed = _lazy(
        other, lambda: (values.numpy() if nearest is None or not forward else nearest()).T.copy(), values
    )
    emit.stored(other, transposed)
    if nearest is not None and not forward:
        matrix.const_value = _lazy(str(matrix.name), nearest, values, transposed=False)


def _lazy(
    name: str, integers: Callable[[], Int8Array], like: ir.TensorProtocol, *, transposed: bool = True
) -> ir.LazyTensor:
    """Computed when it is written, so that the host has one layout in memory."""
    sizes = like.shape.numpy()

    def make() -> ir.TensorProtocol:
        return ir.tensor(integers(), name=name)

    return ir.LazyTensor(make, dtype=like.dtype, shape=ir.Shape(sizes[::-1] if transposed else sizes), name=name)
