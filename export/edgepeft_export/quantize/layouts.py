"""Stores a large int8 matrix as it is and transposed, so that each pass reads the layout that it multiplies by.

onnxruntime would transpose it when it loads the graph, into a copy on the heap. A second layout in the bundle costs
disk and page cache, which the system can evict. Below the threshold the copy is cheap, and the bundle stays small.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgepeft_export.graph.constants import is_frozen
from edgepeft_export.graph.custom_ops import DOMAIN, INT8_MATMUL, TRANSPOSED
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import rank
from edgepeft_export.quantization import QuantizedTensor


def is_large(quantized: Mapping[str, QuantizedTensor], large: int) -> bool:
    """Whether the quantized tensors of a graph have ``large`` bytes or more, 4-bit ones once they are expanded."""
    return sum(tensor.elements for tensor in quantized.values()) >= large


def store_transposed(graph: ir.Graph) -> None:
    """Give every matmul of integers its matrix in the other layout too, in place.

    The names are ``<name>`` and ``<name>.transposed``. Lowering reads one of them, and the other is removed from a
    graph without readers of it.
    """
    emit = Emitter(graph)
    for node in [node for node in graph if node.domain == DOMAIN and node.op_type == INT8_MATMUL]:
        matrix = operand(node, 1)
        if is_frozen(matrix) and rank(matrix) == 2:
            node.resize_inputs(max(len(node.inputs), TRANSPOSED + 1))
            node.replace_input_with(TRANSPOSED, emit.stored(f"{matrix.name}.transposed", _transposed(matrix)))


def _transposed(matrix: ir.Value) -> ir.LazyTensor:
    """Computed when it is written, so that the host has one layout in memory."""
    stored = matrix.const_value
    assert stored is not None
    rows, columns = stored.shape.numpy()
    name = f"{matrix.name}.transposed"

    def make() -> ir.TensorProtocol:
        return ir.tensor(stored.numpy().T.copy(), name=name)

    return ir.LazyTensor(make, dtype=stored.dtype, shape=ir.Shape([columns, rows]), name=name)
