"""Choose how the inputs of int8 matmuls are rounded: with one scale per tensor, or one per row.

One scale per tensor is faster. It ruins language models: the first token of a text gets activations a thousand times
as large as the others, which then round to zero (massive activations: Sun et al., COLM 2024). Which matmuls need rows
is read from the largest, the smallest and the mean square of each row on some data.

Weights whose names differ in numbers alone get the same choice: blocks stay equal, and what one of them needs on other
data is likely what its neighbours need on this.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.graph.rounding import parts
from edgepeft_export.graph.shapes import rank
from edgepeft_export.graph.smoothing import Smoothing
from edgepeft_export.quantize.choose import running
from edgepeft_export.quantize.weights import Weight, weights_of
from edgepeft_export.verification.graph import GraphRun

TOLERABLE = 0.05
"""Largest mean square of a row's rounding error, relative to the row's own, with which one scale per tensor is kept.
The largest of MiniLM's matmuls has 0.015; a language model's has 0.98."""

MASSIVE = 0.5
"""The same, above which an activation is rounded to 16 bits: rows of other tokens would vanish, so what reads it is
sensitive. Of SmolLM2-135M's matmuls, only those of ``down_proj`` have more."""

LARGEST_FACTOR = float(np.log(64))
"""Largest logarithm of a channel's factor. Channels that a few inputs leave empty would get any."""

TABLE_PART = 0.5
"""The part of a factor's logarithm that is used where the weight is a table as well: a row that is looked up is divided
by the factors, with its rounding error."""

Array = NDArray[np.generic]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Rows:
    """Statistics of the rows of one tensor, [rows] each. Rows of zeros are left out."""

    largest: Floats
    smallest: Floats
    mean_square: Floats

    @classmethod
    def of(cls, largest: Array, smallest: Array, mean_square: Array) -> _Rows:
        """From the outputs of a run; zero is part of every range."""
        top, low, size = (np.asarray(array, np.float64).ravel() for array in (largest, smallest, mean_square))
        used = np.isfinite(size) & (size > 0)
        return cls(np.maximum(top, 0)[used], np.minimum(low, 0)[used], size[used])

    def error(self) -> float:
        """Mean relative square of the error with one scale for all rows: step² / 12, and at most the row itself."""
        if not self.mean_square.size:
            return 0.0
        step = (self.largest.max() - self.smallest.min()) / 255
        return float(np.minimum(1.0, step**2 / 12 / self.mean_square).mean())


def rounded_by_row(
    model: ir.Model,
    names: Sequence[str],
    batches: Sequence[Mapping[str, Array]],
    smallest: int,
    *,
    everywhere: bool = False,
) -> dict[str, Smoothing | None]:
    """The weights whose matmuls need a scale per row of their input, with the factors that smooth it.

    Args:
        model: a float graph, which does not change.
        names: the weights that will be quantized.
        batches: inputs and parameters, by name. Without any, all weights are returned, without factors.
        smallest: as in ``edgepeft_export.quantize.Quantization``.
        everywhere: return all weights.
    """
    if not batches:
        return dict.fromkeys(names)
    reads = _reads(model, set(names), batches, smallest)
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for read in reads:
        groups[re.sub(r"\d+", "#", read.weight.name)][read.weight.name] = read.error
    alike = [group for group in groups.values() if everywhere or max(group.values()) > TOLERABLE]
    chosen: dict[str, Smoothing | None] = dict.fromkeys(names if everywhere else [])
    chosen.update(dict.fromkeys(name for group in alike for name in group))
    massive = {name for group in groups.values() if max(group.values()) > MASSIVE for name in group}
    return chosen | _smoothing([read for read in reads if read.weight.name in chosen], massive)


@dataclass(frozen=True)
class _Read:
    """A weight, and the activations that its matmuls multiply.

    Attributes:
        inputs: names of the activations.
        error: with one scale per tensor, the largest of any activation and batch.
        mean_squares: of the channels of the first activation, [channels].
    """

    weight: Weight
    inputs: frozenset[str]
    error: float
    mean_squares: Floats


def _smoothing(reads: Sequence[_Read], massive: Collection[str]) -> dict[str, Smoothing]:
    """Factors for each activation that alone is multiplied by its weights. Massive ones are rounded finely."""
    groups: dict[str, list[_Read]] = defaultdict(list)
    layouts = Counter(read.weight.name for read in reads)
    for read in reads:
        if len(read.inputs) == 1 and layouts[read.weight.name] == 1:
            groups[next(iter(read.inputs))].append(read)
    found: dict[str, Smoothing] = {}
    for group in groups.values():
        sizes = np.max([_largest_by_input(read.weight) for read in group], axis=0)
        fine = any(read.weight.name in massive for read in group)
        looked_up = any(use.node.op_type == "Gather" for read in group for use in read.weight.value.uses())
        part = TABLE_PART if looked_up else 1.0
        smoothing = Smoothing(group[0].weight.name, _reciprocals(group[0].mean_squares, sizes, part), fine)
        found.update({read.weight.name: smoothing for read in group})
    return found


def _largest_by_input(weight: Weight) -> Floats:
    """The largest size of the elements that each input is multiplied by."""
    rows = np.moveaxis(weight.stored, weight.channels, 0)
    sizes = np.zeros(rows.shape[1], np.float32)
    for part in parts(len(rows), len(sizes)):
        sizes = np.maximum(sizes, np.abs(rows[part].astype(np.float32, copy=False)).max(axis=0))
    return sizes.astype(np.float64)


def _reciprocals(mean_squares: Floats, sizes: Floats, part: float) -> NDArray[np.float32]:
    """``1 / f`` with ``f² = root mean square / largest weight``: half of what would make all channels equal.

    ``part`` of its logarithm is used.
    """
    used = (mean_squares > 0) & (sizes > 0) & np.isfinite(mean_squares)
    if not used.any():
        return np.ones(len(sizes), np.float32)
    logs = np.where(used, np.log(np.where(used, np.sqrt(mean_squares) / np.where(used, sizes, 1), 1)) / 2, 0)
    logs = part * np.where(used, logs - logs[used].mean(), 0)
    reciprocals: Floats = np.exp(-np.clip(logs, -LARGEST_FACTOR, LARGEST_FACTOR))
    return reciprocals.astype(np.float32)


def _reads(model: ir.Model, names: set[str], batches: Sequence[Mapping[str, Array]], smallest: int) -> list[_Read]:
    """Run the model, and measure what its matmuls read."""
    probed = model.clone()
    probes: dict[ir.Value, tuple[str, ...]] = {}
    read: list[tuple[Weight, list[ir.Value]]] = []
    emit = Emitter(probed.graph)
    for weight in [each for each in weights_of(probed.graph, smallest) if each.name in names and not each.is_kernel]:
        sites = [LinearSite.of(use.node) for use in weight.value.uses()]
        values = [site.x for site in sites if site is not None]
        read += [(weight, values)] if values else []
        probes.update({x: _probe(emit, x) for x in values if x not in probes})
    probed.graph.outputs[:] = [output for output in probed.graph.outputs if output.name in _flat(probes)]
    if not probes:
        return []
    common.RemoveUnusedNodesPass()(probed)
    run = GraphRun(probed)
    with running():
        results = [run(batch) for batch in batches]
    found = []
    for weight, values in read:
        error = max(_Rows.of(*(result[name] for name in probes[x][:3])).error() for x in values for result in results)
        squares = np.mean([result[probes[values[0]][3]].astype(np.float64) for result in results], axis=0)
        found.append(_Read(weight, frozenset(str(x.name) for x in values), error, np.asarray(squares, np.float64)))
    return found


def _flat(probes: Mapping[ir.Value, tuple[str, ...]]) -> set[str]:
    return {name for names in probes.values() for name in names}


def _probe(emit: Emitter, x: ir.Value) -> tuple[str, ...]:
    """Add the largest, the smallest and the mean square of each row, and the mean square of each channel, to outputs.

    Returns their names.
    """
    last, rows, square = emit.ints(-1), emit.ints(*range(rank(x) - 1)), emit.op("Mul", x, x)
    kinds = (("ReduceMax", x, last), ("ReduceMin", x, last), ("ReduceMean", square, last), ("ReduceMean", square, rows))
    names = tuple(f"{x.name}/{kind}" for kind in ("largest", "smallest", "mean_square", "channels"))
    for (kind, source, axes), name in zip(kinds, names, strict=True):
        output = emit.op(kind, source, axes, keepdims=0)
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        emit.graph.outputs.append(output)
    return names
