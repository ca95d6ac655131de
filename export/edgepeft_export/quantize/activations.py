"""Choose how the inputs of int8 matmuls are rounded: with one scale per tensor, or one per row.

One scale per tensor is faster. It ruins language models: the first token of a text gets activations a thousand times
as large as the others, which then round to zero (massive activations: Sun et al., COLM 2024). Which matmuls need rows
is read from the largest, the smallest and the mean square of each row on some data.

Weights whose names differ in numbers alone get the same choice: blocks stay equal, and what one of them needs on other
data is likely what its neighbours need on this.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.quantize.choose import running
from edgepeft_export.quantize.weights import weights_of
from edgepeft_export.verification.graph import GraphRun

TOLERABLE = 0.05
"""Largest mean square of a row's rounding error, relative to the row's own, with which one scale per tensor is kept.
The largest of MiniLM's matmuls has 0.015; a language model's has 0.98."""

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
    model: ir.Model, names: Sequence[str], batches: Sequence[Mapping[str, Array]], smallest: int
) -> set[str]:
    """The weights whose matmuls need a scale per row of their input.

    Args:
        model: a float graph, which does not change.
        names: the weights that will be quantized.
        batches: inputs and parameters, by name. Without any, all weights are returned.
        smallest: as in :class:`edgepeft_export.quantize.Quantization`.
    """
    if not batches:
        return set(names)
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for name, error in _errors(model, set(names), batches, smallest).items():
        groups[re.sub(r"\d+", "#", name)][name] = error
    return {name for errors in groups.values() if max(errors.values()) > TOLERABLE for name in errors}


def _errors(
    model: ir.Model, names: set[str], batches: Sequence[Mapping[str, Array]], smallest: int
) -> dict[str, float]:
    """The largest error of any input and batch with one scale per tensor, by the name of the weight."""
    probed = model.clone()
    probes: dict[ir.Value, tuple[str, str, str]] = {}
    read: dict[str, list[ir.Value]] = defaultdict(list)
    emit = Emitter(probed.graph)
    for weight in list(weights_of(probed.graph, smallest)):
        sites = [LinearSite.of(use.node) for use in weight.value.uses()]
        for site in sites if weight.name in names and not weight.is_kernel else []:
            if site is not None:
                read[weight.name].append(site.x)
                if site.x not in probes:
                    probes[site.x] = _probe(emit, site.x)
    probed.graph.outputs[:] = [output for output in probed.graph.outputs if output.name in _flat(probes)]
    common.RemoveUnusedNodesPass()(probed)
    if not probes:
        return {}
    run = GraphRun(probed)
    with running():
        results = [run(batch) for batch in batches]
    return {
        name: max(_Rows.of(*(result[output] for output in probes[x])).error() for x in values for result in results)
        for name, values in read.items()
    }


def _flat(probes: Mapping[ir.Value, tuple[str, str, str]]) -> set[str]:
    return {name for names in probes.values() for name in names}


def _probe(emit: Emitter, x: ir.Value) -> tuple[str, str, str]:
    """Add the largest, the smallest and the mean square of each row to the outputs. Returns their names."""
    last = emit.ints(-1)
    outputs = [emit.op(kind, source, last, keepdims=0) for kind, source in (("ReduceMax", x), ("ReduceMin", x))]
    outputs.append(emit.op("ReduceMean", emit.op("Mul", x, x), last, keepdims=0))
    names = tuple(f"{x.name}/{kind}" for kind in ("largest", "smallest", "mean_square"))
    for output, name in zip(outputs, names, strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
        emit.graph.outputs.append(output)
    return names[0], names[1], names[2]
