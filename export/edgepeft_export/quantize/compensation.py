"""Rounds weights so that each error is compensated by the weights that are rounded after it.

The error of a column's product, (w - q)ᵀ C (w - q), depends on the covariance C of the inputs on some data, not on the
rounding of each weight alone. Weights are rounded input by input, and what one loses is taken off those that follow, in
the measure in which their inputs go together (GPTQ: Frantar et al., ICLR 2023). Weights that are zero stay zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.graph.rounding import LARGEST_PAIR, Float32Array, Int8Matrix, parts, steps
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.graph.smoothing import Smoothing
from edgepeft_export.quantize.choose import running
from edgepeft_export.quantize.scores import is_head
from edgepeft_export.quantize.weights import Weight, weights_of
from edgepeft_export.verification.graph import GraphRun

AT_ONCE = 1 << 29
"""Bytes of the covariances that are in memory together. A run of the model measures so many."""

DAMPING = 0.05
"""Damping of the covariance's diagonal, relative to its mean: calibration data are few."""

_BLOCK = 32
"""Inputs whose errors are collected before all later weights are changed."""

Array = NDArray[np.generic]


def compensated(
    model: ir.Model,
    names: Collection[str],
    rows: Mapping[str, Smoothing | None],
    batches: Sequence[Mapping[str, Array]],
    smallest: int,
) -> dict[str, Int8Matrix]:
    """The int8 matrices of those weights that multiply one activation, by name.

    Args:
        model: a float graph, which does not change.
        names: the weights.
        rows: the factors by which activations are divided, as in the report.
        batches: inputs and parameters, by name.
        smallest: as in ``edgepeft_export.quantize.Quantization``.
    """
    found: dict[str, Int8Matrix] = {}
    for inputs in _groups(model, names, smallest):
        for weight, covariance in _measured(model, inputs, batches, smallest):
            smoothing, array = rows.get(weight.name), weight.array
            if smoothing is not None:
                array = smoothing.multiplied(array, 1 - weight.channels)
                covariance = covariance * np.outer(smoothing.reciprocals, smoothing.reciprocals)
            factor = factor_of(covariance)
            if factor is not None:
                found[weight.name] = to_compensated(array, weight.channels, factor, both=not is_head(weight))
    return found


def factor_of(covariance: NDArray[np.floating]) -> Float32Array | None:
    """The upper triangular U of C⁻¹ = Uᵀ U, which says how errors pass on; ``None`` where no input is used."""
    matrix = covariance.astype(np.float64)
    mean = float(np.trace(matrix)) / len(matrix)
    if not np.isfinite(matrix).all() or mean <= 0:
        return None
    matrix[np.diag_indices_from(matrix)] += DAMPING * mean
    upper: Float32Array = np.linalg.cholesky(np.linalg.inv(matrix)).T.astype(np.float32)
    return upper


def to_compensated(matrix: Float32Array, axis: int, factor: Float32Array, *, both: bool) -> Int8Matrix:
    """Round like ``edgepeft_export.graph.rounding.to_int8``, with the same scales and limits, and compensate."""
    moved = np.moveaxis(matrix, axis, -1)
    scale, values = np.empty(moved.shape[1], np.float32), np.empty(moved.shape, np.int8)
    for part in parts(moved.shape[1], len(moved)):
        columns = moved[:, part].astype(np.float32)
        scale[part] = steps(columns, paired=True, both=both)
        values[:, part] = _rounded(columns / scale[part], factor, both=both)
    return Int8Matrix(np.ascontiguousarray(np.moveaxis(values, -1, axis)), scale, axis)


def _rounded(units: Float32Array, factor: Float32Array, *, both: bool) -> NDArray[np.int8]:
    """Integers for [inputs, outputs] in steps."""
    zeros, values = units == 0, np.zeros(units.shape, np.float32)
    for start in range(0, len(units), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(units)))
        errors = np.empty((len(rows), units.shape[1]), np.float32)
        for row in rows:
            value = np.clip(np.rint(units[row]), -127, 127)
            value[zeros[row]] = 0
            if both:
                paired = value[: len(value) // 2 * 2]
                paired[1::2] = _within(paired[::2], paired[1::2])
            values[row] = _within(values[row - 1], value) if row % 2 else value
            error = (units[row] - values[row]) / factor[row, row]
            later = slice(row + 1, rows.stop)
            units[later] -= np.outer(factor[row, later], error)
            errors[row - start] = error
        units[rows.stop :] -= factor[start : rows.stop, rows.stop :].T @ errors
    return values.astype(np.int8)


def _within(first: Float32Array, second: Float32Array) -> Float32Array:
    """``second``, cut so that neighbours of one sign stay within the limit. Its size never grows."""
    limited: Float32Array = np.clip(second, np.minimum(-LARGEST_PAIR - first, 0), np.maximum(LARGEST_PAIR - first, 0))
    return limited


def _inputs(graph: ir.Graph, names: Collection[str], smallest: int) -> dict[ir.Value, list[Weight]]:
    """Each activation, with the matrices among ``names`` that it alone is multiplied by."""
    weights = [weight for weight in weights_of(graph, smallest) if weight.name in names and not weight.is_kernel]
    layouts = Counter(weight.name for weight in weights)
    found: dict[ir.Value, list[Weight]] = defaultdict(list)
    for weight in weights:
        sites = [site for use in weight.value.uses() if (site := LinearSite.of(use.node)) is not None]
        if len({site.x for site in sites}) == 1 and layouts[weight.name] == 1:
            found[sites[0].x].append(weight)
    return found


def _groups(model: ir.Model, names: Collection[str], smallest: int) -> Iterator[set[str]]:
    """The names of weights, by as many activations at a time as ``AT_ONCE`` allows."""
    group, size = set[str](), 0
    for weights in _inputs(model.graph, names, smallest).values():
        needed = 4 * _width(weights[0]) ** 2
        if group and size + needed > AT_ONCE:
            yield group
            group, size = set(), 0
        group, size = group | {weight.name for weight in weights}, size + needed
    if group:
        yield group


def _width(weight: Weight) -> int:
    width = dims_of(weight.value)[1 - weight.channels]
    assert isinstance(width, int)
    return width


def _measured(
    model: ir.Model, names: Collection[str], batches: Sequence[Mapping[str, Array]], smallest: int
) -> Iterator[tuple[Weight, NDArray[np.floating]]]:
    """Run the model. Yields each weight, with the sums of products of its inputs."""
    probed = model.clone()
    emit, weights = Emitter(probed.graph), {}
    outputs = []
    for x, read in _inputs(probed.graph, names, smallest).items():
        flat = emit.op("Reshape", x, emit.ints(-1, _width(read[0])))
        output = emit.op("Gemm", flat, flat, transA=1)
        output.name, output.type = f"{x.name}/covariance", ir.TensorType(ir.DataType.FLOAT)
        weights[str(output.name)] = [weight.name for weight in read]
        outputs.append(output)
    own = {weight.name: weight for weight in weights_of(model.graph, smallest)}
    probed.graph.outputs[:] = outputs
    common.RemoveUnusedNodesPass()(probed)
    run, sums = GraphRun(probed), dict[str, NDArray[np.float32]]()
    with running():
        for batch in batches:
            for name, covariance in run(batch).items():
                sums[name] = sums.get(name, 0) + np.asarray(covariance, np.float32)
    for name, total in sums.items():
        yield from ((own[each], total) for each in weights[name])
