"""Shapes after operators that ONNX does not define, inferred with stand-ins of the same output shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from edgepeft_export.graph.custom_ops import CONTRIB
from edgepeft_export.graph.edit import add_input, replace_node
from edgepeft_export.graph.shapes import infer_shapes, static_dims


def infer_quantized_shapes(model: ir.Model) -> None:
    """Infer shapes, in place, also after matmuls and look-ups of quantized tensors."""
    quantized = [node for node in model.graph if node.domain == CONTRIB and node.op_type in _STAND_INS]
    if not quantized:
        infer_shapes(model)
        return
    shown = model.clone()
    for node in [node for node in shown.graph if node.domain == CONTRIB and node.op_type in _STAND_INS]:
        _STAND_INS[node.op_type](node)
    infer_shapes(shown)
    known = {value.name: value for node in shown.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in known:
                value.shape, value.type = known[value.name].shape, known[value.name].type


def gather_width(node: ir.Node) -> int | None:
    """The number of elements in a row of a ``GatherBlockQuantized``."""
    table = node.inputs[0]
    dims = None if table is None else static_dims(table)
    if table is None or dims is None or len(dims) != 2:
        return None
    two_in_a_byte = table.dtype == ir.DataType.UINT8 and node.attributes.get_int("bits", 4) == 4
    return 2 * dims[1] if two_in_a_byte else dims[1]


def _as_matmul(node: ir.Node) -> None:
    _stand_in(node, "MatMul", [node.attributes["K"].as_int(), node.attributes["N"].as_int()], [0, None])


def _as_gather(node: ir.Node) -> None:
    width = gather_width(node)
    if width is not None:
        _stand_in(node, "Gather", [1, width], [None, 1])


def _stand_in(node: ir.Node, op_type: str, matrix: Sequence[int], reads: Sequence[int | None]) -> None:
    """Replace ``node`` by an ``op_type`` that reads a matrix of that shape where ``reads`` has ``None``."""
    assert isinstance(node.graph, ir.Graph)
    value = add_input(node.graph, f"{node.outputs[0].name}.stand_in", matrix)
    replace_node(node, ir.node(op_type, [value if index is None else node.inputs[index] for index in reads]))


_STAND_INS: dict[str, Callable[[ir.Node], None]] = {"MatMulNBits": _as_matmul, "GatherBlockQuantized": _as_gather}
