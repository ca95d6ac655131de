"""The row-wise part of a block, for a few rows at a time: its widest tensors never exist for all rows.

Pattern: operators of a segment that compute a tensor row by row and widen the rows in between: the projection after the
attention, norms, the feed-forward part, sums.
Algebra: rows do not depend on one another, so a loop over chunks of them computes the same. The backward pass computes
a chunk again and keeps nothing of it; the gradient of a parameter is the sum of those of the chunks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import onnx_ir as ir

from edgepeft_export.autodiff import dependents
from edgepeft_export.chunks.copying import Inner, copy_rows
from edgepeft_export.chunks.region import RowWise, rows_before
from edgepeft_export.graph.custom_ops import DOMAIN, MAP
from edgepeft_export.graph.edit import input_named, remove_node, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import MATMULS
from edgepeft_export.graph.nested.bodies import infer_body
from edgepeft_export.graph.shapes import Dim, at_most, dims_of, infer_shapes, is_float, rank, static_dims


def divide_rows(model: ir.Model, parameters: Collection[str], rows: int) -> bool:
    """Let parts of a segment be computed for at most ``rows`` rows at a time, in place.

    Args:
        model: forward graph, with shapes.
        parameters: names of the inputs that may train.
        rows: as in ``edgepeft_export.chunks.sizes.ChunkSizes``.

    Returns:
        Whether there are such parts.
    """
    graph = model.graph
    depends = dependents(graph, [input_named(graph, name) for name in parameters])
    divided = set[ir.Node]()
    for node in reversed(list(graph)):
        value = node.outputs[0]
        region = None if node in divided else _worth_it(value, depends, rows)
        if region is not None:
            _divide(graph, value, region, depends, rows)
            divided.update(region.nodes)
    if divided:
        graph.sort()  # the new nodes were appended at the end
        infer_shapes(model)
    return bool(divided)


def _worth_it(value: ir.Value, depends: Collection[ir.Value], rows: int) -> RowWise | None:
    """The operators before a value, where they widen rows and the gradients of their matrices are small."""
    region = rows_before(value) if is_float(value) and value.shape is not None and rank(value) > 1 else None
    if region is None or sum(node.op_type in MATMULS for node in region.nodes) < 2:
        return None
    inner = max(_width(output) for node in region.nodes for output in node.outputs)
    outer = max(map(_width, (value, *region.rows)))
    trained = sum(prod(static_dims(shared) or [0]) for shared in region.shared if shared in depends)
    return region if inner > outer and trained <= rows * inner and all(map(_width, region.rows)) else None


def _width(value: ir.Value) -> int:
    """The size of the last axis; 0 where it is not known."""
    width: Dim = dims_of(value)[-1]
    return width if isinstance(width, int) else 0


def _divide(graph: ir.Graph, value: ir.Value, region: RowWise, depends: Collection[ir.Value], rows: int) -> None:
    emit = Emitter(graph, scope=region.nodes[-1].name or "rows")
    shared = [each for each in region.shared if each in depends]
    flat = [emit.op("Flatten", each, axis=rank(each) - 1) for each in region.rows]
    for each, result in zip(region.rows, flat, strict=True):
        result.type, result.shape = each.type, ir.Shape([None, dims_of(each)[-1]])
    chunk = at_most(rows, f"rows of {emit.scope}")
    count = len(flat)
    result = emit.op(
        MAP,
        _size(emit, flat[0], rows),
        *flat,
        *shared,
        domain=DOMAIN,
        body=_body(region, value, shared, graph, chunk),
        axis=0,
        sliced=count,
        wanted=[index for index, each in enumerate([*region.rows, *shared]) if is_float(each)],
    )
    result.type, result.shape = value.type, ir.Shape([None, dims_of(value)[-1]])
    whole = result if rank(value) == 2 else emit.op("Reshape", result, emit.shape_of(value), allowzero=1)
    replace_value(value, whole)
    for node in reversed(region.nodes):
        remove_node(node)


def _size(emit: Emitter, flat: ir.Value, rows: int) -> ir.Value:
    """The rows of a chunk: chunks are as few as possible and of nearly equal size."""
    count, one = emit.op("Shape", flat, start=0, end=1), emit.ints(1)
    chunks = emit.op("Div", emit.op("Add", count, emit.ints(rows - 1)), emit.ints(rows))
    chunks = emit.op("Max", chunks, one)
    size = emit.op("Div", emit.op("Sub", emit.op("Add", count, chunks), one), chunks)
    return emit.op("Max", size, one)


def _body(region: RowWise, value: ir.Value, trained: Sequence[ir.Value], graph: ir.Graph, chunk: str) -> ir.Graph:
    """The same operators on the rows of a chunk."""
    body = ir.Graph([], [], nodes=[], name="rows", opset_imports=dict(graph.opset_imports))
    inner: Inner = {None: None, **{each: each for each in region.shared}}
    for each in region.rows:
        inner[each] = _input(body, each, ir.Shape([chunk, dims_of(each)[-1]]))
    for each in trained:
        inner[each] = _input(body, each, each.shape)
    copy_rows(region, inner, body, chunk)
    body.outputs.extend(result for result in [inner[value]] if result is not None)
    infer_body(body, graph)
    return body


def _input(body: ir.Graph, value: ir.Value, shape: ir.Shape | None) -> ir.Value:
    twin = ir.Value(name=f"rows.{len(body.inputs)}", type=value.type, shape=shape)
    body.inputs.append(twin)
    return twin
