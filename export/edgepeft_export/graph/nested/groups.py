"""A graph that runs for groups of indices of tensors, as a ``Scan`` between reshapes, which copy nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.match import operands
from edgepeft_export.graph.shapes import Dim, at_most, dims_of

AXIS = 1
"""The axis of the groups."""


def scan_groups(node: ir.Node) -> None:
    """Replace a ``Map`` (size, tensors ...), in place; see :data:`edgepeft_export.graph.custom_ops.MAP`."""
    size, *tensors = operands(node)
    count = len(node.outputs)
    attributes = [
        node.attributes["body"],
        ir.AttrInt64("num_scan_inputs", len(tensors)),
        ir.AttrInt64s("scan_input_axes", [AXIS] * len(tensors)),
        ir.AttrInt64s("scan_output_axes", [AXIS] * count),
    ]
    lowering = _Lowering(node)
    inputs = [lowering.grouped(value, size) for value in tensors]
    scan = ir.Node("", "Scan", inputs, attributes, num_outputs=count, name=f"{node.name}/Scan")
    node.prepend(scan)
    for old, new in zip(node.outputs, scan.outputs, strict=True):
        new.type, new.shape = old.type, lowering.shape_in_groups(old)
        replace_value(old, lowering.joined(new, tensors[0]))
    remove_node(node)


class _Lowering:
    """Puts nodes before a node."""

    def __init__(self, node: ir.Node) -> None:
        self._node = node

    def grouped(self, value: ir.Value, size: ir.Value) -> ir.Value:
        """[a, n, ...] to [a, groups, size, ...]."""
        shape = [self._dims(value, 0, AXIS), self._ints(-1), size, self._dims(value, AXIS + 1)]
        result = self._op("Reshape", value, self._op("Concat", *shape, axis=0))
        result.type, result.shape = value.type, self.shape_in_groups(value)
        return result

    def joined(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """[a, groups, size, ...] to [a, n, ...], with n of ``like``."""
        shape = [self._dims(value, 0, AXIS), self._dims(like, AXIS, AXIS + 1), self._dims(value, AXIS + 2)]
        return self._op("Reshape", value, self._op("Concat", *shape, axis=0))

    def shape_in_groups(self, value: ir.Value) -> ir.Shape:
        """The dimensions of a tensor in groups. Groups are counted as if they were of one index."""
        dims = dims_of(value)
        count = dims[AXIS]
        groups: Dim = at_most(count, f"groups of {self._node.name}") if isinstance(count, int) else None
        return ir.Shape([*dims[:AXIS], groups, self.size_name, *dims[AXIS + 1 :]])

    @property
    def size_name(self) -> str:
        """The name of the size of a group."""
        return at_most(1, f"group of {self._node.name}")

    def _dims(self, value: ir.Value, start: int, end: int | None = None) -> ir.Value:
        limits = {"start": start} if end is None else {"start": start, "end": end}
        shape = self._op("Shape", value, **limits)
        shape.type = ir.TensorType(ir.DataType.INT64)
        return shape

    def _ints(self, *numbers: int) -> ir.Value:
        return self._op("Constant", value=ir.tensor(np.asarray(numbers, np.int64)))

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: int | ir.TensorProtocol) -> ir.Value:
        new = ir.node(op_type, inputs, attributes, name=f"{self._node.name}/{op_type}")
        self._node.prepend(new)
        return new.outputs[0]
