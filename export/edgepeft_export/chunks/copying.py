"""Copies operators that treat rows alike into the body of a loop, where the rows of a chunk lie in a matrix."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.chunks.region import AXES, ELEMENTWISE, RESHAPES, RowWise
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of, rank

Inner = dict[ir.Value | None, ir.Value | None]
"""The values of a body by what they stand for."""


def copy_rows(region: RowWise, inner: Inner, body: ir.Graph, chunk: str) -> None:
    """Append the region's operators for the rows of one chunk, and add their results to ``inner``.

    Args:
        region: the operators.
        inner: slices of its rows, [chunk, width], and its shared tensors.
        body: the graph to write into.
        chunk: name of the number of rows.
    """
    emit = Emitter(body)
    for node in region.nodes:
        if node.op_type in RESHAPES and not node.domain:
            inner[node.outputs[0]] = inner[node.inputs[0]]
            continue
        axes = AXES.get(node.op_type)
        inputs = [emit.ints(-1) if index == axes else inner[value] for index, value in enumerate(node.inputs)]
        if node.op_type in ELEMENTWISE and not node.domain:
            inputs = [_aligned(value, emit) for value in inputs]
        attributes = {name: value for name, value in node.attributes.items() if name != "axis"}
        if "axis" in node.attributes:
            attributes["axis"] = ir.AttrInt64("axis", -1)
        outputs = len(node.outputs)
        copy = ir.Node(node.domain, node.op_type, inputs, attributes.values(), num_outputs=outputs, name=node.name)
        body.append(copy)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            inner[old], new.type, new.shape = new, old.type, ir.Shape([chunk, dims_of(old)[-1]])


def _aligned(value: ir.Value | None, emit: Emitter) -> ir.Value | None:
    """An operand that is broadcast over rows, without the axes of 1 that the rows had before they were flattened."""
    if value is None or rank(value) <= 2:
        return value
    return emit.op("Reshape", value, emit.ints(-1))
