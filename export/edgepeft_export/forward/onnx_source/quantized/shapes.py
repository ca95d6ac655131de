"""Shapes behind operators that ONNX does not define: inferred with stand-ins of the same shape in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.graph.composites import CONTRIB
from edgepeft_export.graph.shapes import static_dims


def infer_packed_shapes(model: ir.Model) -> None:
    """Infer shapes, in place, also behind products and look-ups of packed tensors."""
    packed = [node for node in model.graph if node.domain == CONTRIB and node.op_type in _STAND_INS]
    if not packed:
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return
    shown = model.clone()
    for node in [node for node in shown.graph if node.domain == CONTRIB and node.op_type in _STAND_INS]:
        _STAND_INS[node.op_type](node)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(shown)
    known = {value.name: value for node in shown.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in known:
                value.shape, value.type = known[value.name].shape, known[value.name].type


def gather_width(node: ir.Node) -> int | None:
    """How many numbers a row of a ``GatherBlockQuantized`` has."""
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
    """Put ``op_type`` in the place of ``node``: it reads a matrix of that shape where ``reads`` says ``None``."""
    assert node.graph is not None
    name = f"{node.outputs[0].name}.stand_in"
    value = ir.Value(name=name, shape=ir.Shape(matrix), type=ir.TensorType(ir.DataType.FLOAT))
    node.graph.inputs.append(value)
    stand_in = ir.node(op_type, [value if at is None else node.inputs[at] for at in reads])
    node.prepend(stand_in)
    node.outputs[0].replace_all_uses_with(stand_in.outputs[0], replace_graph_outputs=True)
    stand_in.outputs[0].name, node.outputs[0].name = node.outputs[0].name, None
    node.graph.remove(node, safe=True)


_STAND_INS: dict[str, Callable[[ir.Node], None]] = {"MatMulNBits": _as_matmul, "GatherBlockQuantized": _as_gather}
