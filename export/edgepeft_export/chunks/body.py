"""The body of a loop over chunks: the loss of a chunk of rows, and its gradient, by ``differentiate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_export.autodiff import differentiate
from edgepeft_export.chunks.copying import Inner, copy_rows
from edgepeft_export.chunks.region import RowWise
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operand, present
from edgepeft_export.graph.nested.bodies import rejoin, stand_in
from edgepeft_export.graph.shapes import Dim, dims_of, dtype_of, infer_shapes
from edgepeft_export.losses.entropy import Entropy, Weights, lean_scores, terms_of
from edgepeft_export.opset import IR_VERSION
from edgepeft_export.passes import scatter_into_sums


@dataclass(frozen=True)
class RegionTargets:
    """The values of a region whose gradients are needed, as in ``RowWise``."""

    rows: Sequence[ir.Value]
    shared: Sequence[ir.Value]


def loss_body(loss: ir.Node, region: RowWise, wanted: RegionTargets, chunk: str) -> ir.Graph:
    """The body of a ``Scan``. It reads the shared tensors of the region from the graph around it.

    Args:
        loss: a ``CrossEntropy``.
        region: computes its logits.
        wanted: gradients that the body computes.
        chunk: name of the number of rows in a chunk.

    Returns:
        A graph from sums (loss, its weight, gradients of ``wanted.shared``) and slices (of ``region.rows``, of the
        labels, of the rows' weights) to the sums with this chunk and the gradients of the slices of ``wanted.rows``.
    """
    assert loss.graph is not None
    body = ir.Graph([], [], nodes=[], name="chunk", opset_imports=dict(loss.graph.opset_imports))
    sums = [_input(body, [], ir.DataType.FLOAT) for _ in range(2)]
    sums += [_input(body, dims_of(value), dtype_of(value)) for value in wanted.shared]
    slices = {value: _input(body, [chunk, dims_of(value)[-1]], dtype_of(value)) for value in region.rows}
    labels = _input(body, [chunk], dtype_of(operand(loss, 1)))
    row_weights = None if present(loss, 3) is None else _input(body, [chunk], ir.DataType.FLOAT)
    read = [*region.shared, *(value for value in loss.inputs[2:3] if value is not None)]
    shared = {value: stand_in(body, value) for value in dict.fromkeys(read)}
    model = ir.Model(body, ir_version=IR_VERSION)

    inner: Inner = {None: None}
    for outer, twin in (*slices.items(), *shared.items()):
        inner[outer] = twin
    copy_rows(region, inner, body, chunk)
    logits = inner[operand(loss)]
    assert logits is not None
    emit = Emitter(body, scope=loss.name or "loss")
    weights = Weights(inner[present(loss, 2)], row_weights)
    terms = terms_of(emit, Entropy.of(loss), lean_scores(emit, logits), labels, weights)
    common.NameFixPass()(model)  # names of the graph around it are among those of the body until the end
    infer_shapes(model)
    targets = {value: target for value in (*wanted.rows, *wanted.shared) if (target := inner[value]) is not None}
    found = differentiate(body, terms.sum, list(targets.values()))
    gradients = {value: found[target] for value, target in targets.items()}
    emit = Emitter(body, scope=loss.name or "loss")
    added = [*terms, *(gradients[value] for value in wanted.shared)]
    body.outputs.extend(emit.op("Add", total, part) for total, part in zip(sums, added, strict=True))
    body.outputs.extend(gradients[value] for value in wanted.rows)
    scatter_into_sums(body)
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)
    infer_shapes(model)
    rejoin(body, shared, loss.graph)
    return body


def _input(body: ir.Graph, dims: Sequence[Dim], dtype: ir.DataType) -> ir.Value:
    value = ir.Value(name=f"chunk.{len(body.inputs)}", shape=ir.Shape(dims), type=ir.TensorType(dtype))
    body.inputs.append(value)
    return value
