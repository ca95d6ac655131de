"""Cross-entropy over many classes, in chunks of rows, so that the logits of a batch never exist.

Pattern: a ``CrossEntropy`` whose logits come from matmuls by way of operators that treat rows alike: a bias, a factor,
a soft cap, a low-rank pair beside the matmul.
Algebra: loss and weight are sums over rows, and rows whose label is ignored count 0. The gradient of the sum with
respect to a row depends on that row alone, so the loop that computes a chunk's logits computes their gradient at once
(Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025, has kernels to the same effect).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.autodiff import dependents
from edgepeft_export.autodiff.rules.reading import zeros_like
from edgepeft_export.chunks.body import RegionTargets, loss_body
from edgepeft_export.chunks.region import RowWise, row_wise
from edgepeft_export.chunks.sizes import NORMAL, ChunkSizes
from edgepeft_export.graph.custom_ops import DOMAIN, STOP_GRADIENT, WITH_GRADIENT
from edgepeft_export.graph.edit import input_named
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.shapes import Dim, at_most, dims_of, rank, static_dims
from edgepeft_export.losses import LossTerms
from edgepeft_export.losses.entropy import Entropy, cross_entropies, replace_terms, write_cross_entropies
from edgepeft_runtime.notices import notice

LARGE = 8192
"""Classes. Below, the logits are small beside the activations."""


class _Chunks(NamedTuple):
    """The rows that count, in chunks of equal size.

    Attributes:
        rows: indices of the rows that count, [counted].
        padding: int64 vector of length 1: rows of zeros that the last chunk lacks.
        sizes: int64 vector: number of chunks, rows in a chunk.
    """

    rows: ir.Value
    padding: ir.Value
    sizes: ir.Value


def chunk_losses(
    model: ir.Model, parameters: Collection[str], sizes: ChunkSizes = NORMAL, large: int = LARGE
) -> ir.Model:
    """Write the cross-entropies of a graph as operators, in place: in chunks where they have ``large`` classes or more.

    Args:
        model: with losses as nodes. Logits that another node or an output of the graph needs stay whole.
        parameters: names of the inputs whose gradient will be needed. Afterwards, gradients of the loss can be taken
            with respect to these and to values that depend on them.
        sizes: of chunks.
        large: number of classes.
    """
    common.RemoveUnusedNodesPass()(model)  # they read logits, perhaps
    graph = model.graph
    depends = dependents(graph, [input_named(graph, name) for name in parameters])
    for loss in cross_entropies(graph):
        classes = dims_of(operand(loss))[-1]
        if not isinstance(classes, int) or classes < large:
            continue
        region, chunk = row_wise(operand(loss), loss), sizes.logits
        reason = "another node reads them, or they are not computed row by row" if region is None else None
        if region is not None:
            wanted = RegionTargets(_within(region.rows, depends), _within(region.shared, depends))
            if sum(map(_size, wanted.shared)) <= chunk * classes:
                replace_terms(loss, _in_chunks(loss, region, wanted, chunk))
            else:
                reason = "the matrix of the head trains"
        if reason is not None:
            notice(f"The logits of {classes:,} classes are computed for a whole batch at once: {reason}.")
    graph.sort()  # the new nodes were appended at the end
    return write_cross_entropies(model)


def _within(values: Sequence[ir.Value], depends: Collection[ir.Value]) -> list[ir.Value]:
    return [value for value in values if value in depends]


def _size(value: ir.Value) -> int:
    return prod(static_dims(value) or [0])


def _in_chunks(loss: ir.Node, region: RowWise, wanted: RegionTargets, chunk: int) -> LossTerms:
    """Append the loop over chunks. The loss that it computes has the gradients that it computes."""
    assert loss.graph is not None
    emit = Emitter(loss.graph, scope=loss.name or "loss/chunks")
    target, ignored = operand(loss, 1), Entropy.of(loss).ignore_index
    chunks = _chunks(emit, target, ignored, chunk)
    flat = {value: emit.op("Flatten", value, axis=rank(value) - 1) for value in region.rows}
    slices = [_sliced(emit, chunks, rows, dims_of(value)[-1]) for value, rows in flat.items()]
    slices.append(_sliced(emit, chunks, target, None, ignored))
    if (row_weights := present(loss, 3)) is not None:
        slices.append(_sliced(emit, chunks, row_weights, None))
    zero = emit.constant(np.zeros((), np.float32))
    sums = [zero, zero, *(zeros_like(value, emit) for value in wanted.shared)]
    total, weight, *found = emit.ops(
        "Scan",
        *sums,
        *slices,
        outputs=len(sums) + len(wanted.rows),
        body=loss_body(loss, region, wanted, at_most(chunk, str(loss.outputs[0].name or loss.name))),
        num_scan_inputs=len(slices),
    )
    total.shape, weight.shape = ir.Shape([]), ir.Shape([])
    by_shared, by_rows = found[: len(wanted.shared)], found[len(wanted.shared) :]
    gradients = [_whole(emit, chunks, flat[value], value, dx) for value, dx in zip(wanted.rows, by_rows, strict=True)]
    return LossTerms(_with_gradients(emit, total, [*wanted.rows, *wanted.shared], [*gradients, *by_shared]), weight)


def _with_gradients(
    emit: Emitter, total: ir.Value, values: Sequence[ir.Value], gradients: Sequence[ir.Value]
) -> ir.Value:
    """``total`` with these gradients with respect to ``values``. The loop itself is not differentiated."""
    total, *constants = [emit.op(STOP_GRADIENT, value, domain=DOMAIN) for value in (total, *gradients)]
    for value, gradient in zip((total, *values), (total, *constants), strict=True):
        gradient.shape = ir.Shape([]) if gradient is total else value.shape
    return emit.op(WITH_GRADIENT, total, *values, *constants, domain=DOMAIN)


def _chunks(emit: Emitter, target: ir.Value, ignored: int, chunk: int) -> _Chunks:
    """The rows whose label counts in as few chunks as possible, all of the same size: at least one, of one row."""
    counts = emit.op("Not", emit.op("Equal", target, emit.scalar(ignored, like=target)))
    rows = emit.op("Squeeze", emit.op("NonZero", counts), emit.ints(0))
    counted = emit.op("Shape", rows)
    number = _rounded_up(emit, counted, emit.ints(chunk))
    size = _rounded_up(emit, counted, number)
    padding = emit.op("Sub", emit.op("Mul", number, size), counted)
    return _Chunks(rows, padding, emit.op("Concat", number, size, axis=0))


def _rounded_up(emit: Emitter, count: ir.Value, by: ir.Value) -> ir.Value:
    quotient = emit.op("Div", emit.op("Add", count, emit.op("Sub", by, emit.ints(1))), by)
    return emit.op("Max", quotient, emit.ints(1))


def _sliced(emit: Emitter, chunks: _Chunks, rows: ir.Value, width: Dim, fill: int = 0) -> ir.Value:
    """The rows that count, [chunks, chunk, width] or [chunks, chunk]. Rows that the last chunk lacks are ``fill``."""
    counted = emit.op("Gather", rows, chunks.rows, axis=0)
    pads = (
        emit.op("Concat", emit.ints(0), chunks.padding, axis=0)
        if width is None
        else emit.op("Concat", emit.ints(0, 0), chunks.padding, emit.ints(0), axis=0)
    )
    padded = emit.op("Pad", counted, pads, emit.scalar(fill, like=rows))
    shape = chunks.sizes if not isinstance(width, int) else emit.op("Concat", chunks.sizes, emit.ints(width), axis=0)
    return emit.op("Reshape", padded, shape)


def _whole(emit: Emitter, chunks: _Chunks, flat: ir.Value, value: ir.Value, gradient: ir.Value) -> ir.Value:
    """The gradient of all rows from that of chunks: 0 for rows that do not count."""
    width = dims_of(value)[-1]
    assert isinstance(width, int)
    rows = emit.op("Reshape", gradient, emit.ints(-1, width))
    counted = emit.op("Slice", rows, emit.ints(0), emit.op("Shape", chunks.rows), emit.ints(0))
    zeros = emit.zeros(emit.op("Shape", flat), like=value)
    # No index is there twice, so nothing is added from several threads.
    scattered = emit.op("ScatterND", zeros, emit.op("Unsqueeze", chunks.rows, emit.ints(1)), counted)
    return scattered if rank(value) == 2 else emit.op("Reshape", scattered, emit.shape_of(value), allowzero=1)
