"""Operators that write at indices computed at run time. Their gradients read where they write.

Tuples of indices (``ScatterND``) are numbered as rows of the flat tensor for the reductions, because repeated ones
have to be added or multiplied: see ``edgepeft_export.autodiff.rules.index``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.autodiff.registry import Gradients, NoGradientForCase, rule
from edgepeft_export.autodiff.rules.index import row_numbers
from edgepeft_export.autodiff.rules.reading import axis_of, zeros_like
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands
from edgepeft_export.graph.shapes import dims_of, dtype_of, rank


@rule("ScatterElements")
def scatter_elements(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    data, indices, updates = operands(node)
    axis, reduction = axis_of(node, 0, rank(data)), _reduction(node)
    if reduction not in ("none", "add"):
        scattered = _Scattered(data, indices, updates, node.outputs[0], axis, emit)
        ddata, dupdates = scattered.gradients(reduction, dy)
        return ddata, None, dupdates
    dupdates = emit.op("GatherElements", dy, indices, axis=axis)
    if reduction == "add":
        return dy, None, dupdates
    return emit.op("ScatterElements", dy, indices, zeros_like(updates, emit), axis=axis), None, dupdates


@rule("ScatterND")
def scatter_nd(node: ir.Node, dy: ir.Value, emit: Emitter) -> Gradients:
    _, indices, updates = operands(node)
    reduction = _reduction(node)
    if reduction not in ("none", "add"):
        return _reduced_rows(node, reduction, dy, emit)
    dupdates = emit.op("GatherND", dy, indices)
    if reduction == "add":
        return dy, None, dupdates
    return emit.op("ScatterND", dy, indices, zeros_like(updates, emit)), None, dupdates


def _reduction(node: ir.Node) -> str:
    return str(node.attributes.get_string("reduction", "none"))


@dataclass(frozen=True)
class _Scattered:
    """Updates that were reduced into some data at indices of an axis, and the result."""

    data: ir.Value
    indices: ir.Value
    updates: ir.Value
    result: ir.Value
    axis: int
    emit: Emitter

    def gradients(self, reduction: str, dy: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The gradients of data and updates."""
        return self._of_product(dy) if reduction == "mul" else self._of_extreme(dy)

    def _of_extreme(self, dy: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Elements that attain the maximum or minimum divide its gradient evenly."""
        emit, dtype = self.emit, dtype_of(self.data)
        data_attains = emit.cast(emit.op("Equal", self.data, self.result), dtype)
        attain = emit.cast(emit.op("Equal", self.updates, self._read(self.result)), dtype)
        each = emit.op("Div", dy, self._write(data_attains, attain, "add"))
        return emit.op("Mul", each, data_attains), emit.op("Mul", self._read(each), attain)

    def _of_product(self, dy: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The product of all other factors. It is a division, save where a factor is 0: so zeros are counted."""
        emit, dtype = self.emit, dtype_of(self.data)
        one, zero = (emit.scalar(number, like=self.data) for number in (1.0, 0.0))
        ones = emit.op("Add", zeros_like(self.data, emit), one)
        ddata = emit.op("Mul", dy, self._write(ones, self.updates, "mul"))
        is_zero = emit.cast(emit.op("Equal", self.updates, zero), dtype)
        factors = emit.op("Add", self.updates, is_zero)
        product = self._read(self._write(self.data, factors, "mul"))
        zeros = self._read(self._write(zeros_like(self.data, emit), is_zero, "add"))
        no_other = emit.cast(emit.op("Equal", zeros, is_zero), dtype)
        others = emit.op("Mul", emit.op("Div", product, factors), no_other)
        return ddata, emit.op("Mul", self._read(dy), others)

    def _read(self, value: ir.Value) -> ir.Value:
        return self.emit.op("GatherElements", value, self.indices, axis=self.axis)

    def _write(self, value: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
        return self.emit.op("ScatterElements", value, self.indices, updates, axis=self.axis, reduction=reduction)


def _reduced_rows(node: ir.Node, reduction: str, dy: ir.Value, emit: Emitter) -> Gradients:
    """As for single elements, on matrices: a row for each tuple of indices."""
    data, indices, updates = operands(node)
    depth = dims_of(indices)[-1]
    if not isinstance(depth, int):
        raise NoGradientForCase(node, "the length of its index tuples is not known", "declare the shape of its indices")
    flat_data, flat_result, flat_dy = (emit.op("Flatten", value, axis=depth) for value in (data, node.outputs[0], dy))
    flat_updates = emit.op("Flatten", updates, axis=rank(indices) - 1)
    rows = emit.op("Reshape", row_numbers(data, indices, 0, depth, emit), emit.ints(-1, 1))
    positions = emit.op("Expand", rows, emit.op("Shape", flat_updates))
    found = _Scattered(flat_data, positions, flat_updates, flat_result, 0, emit).gradients(reduction, flat_dy)
    ddata, dupdates = (
        emit.op("Reshape", value, emit.shape_of(like), allowzero=1)
        for value, like in zip(found, (data, updates), strict=True)
    )
    return ddata, None, dupdates
