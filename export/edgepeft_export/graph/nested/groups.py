"""A graph that runs for groups of indices of tensors, as a ``Scan`` over the first index of each group.

An iteration slices its group from the whole tensors. A ``Scan`` over slices along another axis than the first would
transpose whole tensors, and all of its slices would have to be of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.match import operands
from edgepeft_export.graph.shapes import Dim, at_most, dims_of, dtype_of, rank


@dataclass(frozen=True)
class Groups:
    """The settings of a ``Map``; see ``edgepeft_export.graph.custom_ops.MAP``.

    Attributes:
        axis: the axis of the groups.
        sliced: number of tensors that are divided; the others are shared by all groups.
        sums: number of outputs, the last ones, that are added up.
        exact: whether the size divides the number of indices.
    """

    axis: int
    sliced: int
    sums: int
    exact: bool

    @classmethod
    def of(cls, node: ir.Node) -> Groups:
        """Those of a node."""
        axis, sliced, sums, exact = (int(node.attributes.get_int(name, 0) or 0) for name in _SETTINGS)
        return cls(axis, sliced, sums, bool(exact))


_SETTINGS = ("axis", "sliced", "sums", "exact")


def scan_groups(node: ir.Node) -> None:
    """Replace a ``Map`` (size, tensors ..., shared ...), in place. Outputs that nothing reads are not computed."""
    size, *given = operands(node)
    groups, body = Groups.of(node), node.attributes["body"].as_graph()
    joined, summed = _read_outputs(node, body, groups)
    before = _Writer(node)
    count = before.dims(given[0], groups.axis, groups.axis + 1)
    inputs = [*(before.zeros(value) for value in summed), before.starts(count, size)]
    _write_body(body, given, size, groups, len(summed), str(node.name))
    attributes = [
        ir.AttrGraph("body", body),
        ir.AttrInt64("num_scan_inputs", 1),
        ir.AttrInt64s("scan_output_axes", [groups.axis] * len(joined)),
    ]
    count_of_outputs = len(summed) + len(joined)
    scan = ir.Node("", "Scan", inputs, attributes, num_outputs=count_of_outputs, name=f"{node.name}/Scan")
    node.prepend(scan)
    for old, new in zip(summed, scan.outputs, strict=False):
        replace_value(old, new)
    for old, new in zip(joined, scan.outputs[len(summed) :], strict=True):
        new.type, new.shape = old.type, _shape_in_groups(old, groups.axis, str(node.name))
        replace_value(old, before.joined(new, count, groups))
    remove_node(node)


def _read_outputs(node: ir.Node, body: ir.Graph, groups: Groups) -> tuple[list[ir.Value], list[ir.Value]]:
    """The outputs of a node that are read: those that are joined, and sums. The body computes no others from now on."""
    there = [index for index, value in enumerate(node.outputs) if value.uses() or value.is_graph_output()]
    first_sum = len(node.outputs) - groups.sums
    parts, sums = ([index for index in there if (index >= first_sum) is summed] for summed in (False, True))
    body.outputs[:] = [body.outputs[index] for index in (*sums, *parts)]
    for inner in reversed(list(body)):
        if not any(output.uses() or output.is_graph_output() for output in inner.outputs):
            body.remove(inner, safe=True)
    return [node.outputs[index] for index in parts], [node.outputs[index] for index in sums]


def _write_body(body: ir.Graph, given: list[ir.Value], size: ir.Value, groups: Groups, sums: int, name: str) -> None:
    """Turn a graph of slices into one of sums so far and the first index of a slice, which it reads itself."""
    slices, shared = list(body.inputs[: groups.sliced]), list(body.inputs[groups.sliced :])
    results = list(body.outputs)
    start = ir.Value(name=f"{name}/start", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    states = [ir.Value(name=f"{name}/sum.{i}", shape=value.shape, type=value.type) for i, value in enumerate(results)]
    body.inputs[:] = [*states[:sums], start]
    for inner, outer in zip(shared, given[groups.sliced :], strict=True):
        inner.replace_all_uses_with(outer)
    first, last = _Writer(body[0]), _Writer(body[-1], after=True)
    end, axes = first.op("Add", start, size), first.ints(groups.axis)
    for inner, outer in zip(slices, given, strict=False):
        part = first.op("Slice", outer, start, end, axes)
        part.type, part.shape = inner.type, inner.shape
        inner.replace_all_uses_with(part)
    body.outputs[:] = [
        *(last.like(value, "Add", state, value) for state, value in zip(states[:sums], results, strict=False)),
        *(value if groups.exact else last.padded(value, size, groups.axis) for value in results[sums:]),
    ]


def _shape_in_groups(value: ir.Value, axis: int, name: str) -> ir.Shape:
    """The dimensions of a tensor in groups. Groups are counted as if they were of one index."""
    dims = dims_of(value)
    count = dims[axis]
    groups: Dim = at_most(count, f"groups of {name}") if isinstance(count, int) else None
    return ir.Shape([*dims[:axis], groups, at_most(1, f"group of {name}"), *dims[axis + 1 :]])


class _Writer:
    """Puts nodes before a node, or after it, in order."""

    def __init__(self, node: ir.Node, *, after: bool = False) -> None:
        self._node, self._after, self._name, self._nodes = node, after, node.name, 0

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int | ir.TensorProtocol) -> ir.Value:
        """The output of a new node, which is a vector of integers unless it gets another type."""
        self._nodes += 1
        side = "after" if self._after else "before"
        new = ir.node(op_type, inputs, attributes, name=f"{self._name}/groups/{side}/{self._nodes}/{op_type}")
        if self._after:
            self._node.append(new)
            self._node = new
        else:
            self._node.prepend(new)
        new.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        return new.outputs[0]

    def like(self, value: ir.Value, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        """The output of a new node, of the type and the shape of ``value``."""
        output = self.op(op_type, *inputs, **attributes)
        output.type, output.shape = value.type, value.shape
        return output

    def ints(self, *numbers: int) -> ir.Value:
        """A constant vector."""
        return self.op("Constant", value=ir.tensor(np.asarray(numbers, np.int64)))

    def dims(self, value: ir.Value, start: int, end: int | None = None) -> ir.Value:
        """Sizes of a tensor."""
        return self.op("Shape", value, **({"start": start} if end is None else {"start": start, "end": end}))

    def starts(self, count: ir.Value, size: ir.Value) -> ir.Value:
        """The first index of each group, [groups, 1]."""
        first = self.op("Constant", value=ir.tensor(np.asarray(0, np.int64)))
        end, step = (self.op("Squeeze", value, self.ints(0)) for value in (count, size))
        return self.op("Unsqueeze", self.op("Range", first, end, step), self.ints(1))

    def zeros(self, value: ir.Value) -> ir.Value:
        """Zeros of the shape of ``value``, which is known. No constant: it would stay in memory."""
        dims = [dim for dim in dims_of(value) if isinstance(dim, int)]
        fill = ir.tensor(np.zeros(1, dtype_of(value).numpy()))
        return self.like(value, "Expand", self.op("Constant", value=fill), self.ints(*dims))

    def padded(self, value: ir.Value, size: ir.Value, axis: int) -> ir.Value:
        """A group of full size: with zeros after a smaller one."""
        missing = self.op("Sub", size, self.dims(value, axis, axis + 1))
        zeros = self.ints(*[0] * (rank(value) + axis)), self.ints(*[0] * (rank(value) - axis - 1))
        pads = self.op("Concat", *(part for part in (zeros[0], missing, zeros[1])), axis=0)
        return self.like(value, "Pad", value, pads)

    def joined(self, value: ir.Value, count: ir.Value, groups: Groups) -> ir.Value:
        """[a, groups, size, ...] to [a, count, ...]."""
        axis = groups.axis
        rest = self.dims(value, axis + 2)
        shape = [*([self.dims(value, 0, axis)] if axis else []), count if groups.exact else self.ints(-1), rest]
        whole = self.op("Reshape", value, self.op("Concat", *shape, axis=0))
        whole.type = value.type
        if groups.exact:
            return whole
        counted = self.op("Slice", whole, self.ints(0), count, self.ints(axis))
        counted.type = value.type
        return counted
