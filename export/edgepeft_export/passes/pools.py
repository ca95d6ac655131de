"""Ensures that releases of ONNX Runtime agree on the mean of a window that hangs over the edge.

Pattern: ``AveragePool`` with ``ceil_mode`` and ``count_include_pad``. The last window may reach beyond the padding;
some releases divide it by the size of a whole window, others, like PyTorch, by the number of elements that exist.
Algebra: zeros around the image, and then a mean of what exists without padding. Left alone are windows that could lie
in the padding alone, because the padded image would have one more of them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import new_initializer
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import rank


def pad_pools(model: ir.Model) -> bool:
    """Write the zeros of every such window, in place. Returns whether there was one."""
    return bool([node for node in model.graph if node.op_type == "AveragePool" and _padded(node)])


def _padded(node: ir.Node) -> bool:
    flags = [bool(node.attributes.get_int(name, 0)) for name in ("ceil_mode", "count_include_pad")]
    automatic = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    x = operand(node)
    if not all(flags) or automatic or x.shape is None or node.domain:
        return False
    axes = rank(x) - 2
    pads = _ints(node, "pads", [0] * 2 * axes)
    reach = [
        (size - 1) * step + 1
        for size, step in zip(_ints(node, "kernel_shape", []), _ints(node, "dilations", [1] * axes), strict=True)
    ]
    if any(
        after + stride > size
        for after, stride, size in zip(pads[axes:], _ints(node, "strides", [1] * axes), reach, strict=True)
    ):
        return False
    node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
    if any(pads):
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        amounts = np.array([0, 0, *pads[:axes], 0, 0, *pads[axes:]], np.int64)
        stem = f"{node.name or node.op_type}/pads"
        pad = ir.node("Pad", [x, new_initializer(graph, stem, amounts)], name=stem)
        node.prepend(pad)
        pad.outputs[0].type = x.type
        node.replace_input_with(0, pad.outputs[0])
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * 2 * axes)
    return True


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes.get_ints(name, default))
