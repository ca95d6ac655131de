"""Choose the weights that stay fp32, by the effect of their quantization on the outputs for calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgepeft_export.errors import CalibrationFailed, MissingCalibrationInput, NoCalibration
from edgepeft_export.forward import Forward
from edgepeft_export.verification.graph import GraphRun

Batch = Mapping[str, NDArray[np.generic]]
Outputs = list[list[NDArray[np.generic]]]
Variant = Callable[[Iterable[str]], ir.Model]
"""From the names of quantized weights to the model with these quantized."""


def most_sensitive(
    forward: Forward, names: Sequence[str], variant: Variant, batches: Sequence[Batch], tolerance: float
) -> dict[str, float]:
    """The fewest weights that have to stay fp32 for the outputs to be within ``tolerance``.

    Each weight is quantized alone and the model run, which ranks them. Then bisection finds how many of the most
    sensitive have to stay fp32.

    Returns:
        For each weight that stays fp32, the relative error that quantizing it alone causes.
    """
    if not batches:
        raise NoCalibration("The calibration data is empty.", context=None, hint="give at least one batch.")
    fed = [complete(forward, batch) for batch in batches]
    exact = _run(variant(()), fed)

    def error(quantized: Iterable[str]) -> float:
        return _distance(_run(variant(quantized), fed), exact)

    if error(names) <= tolerance:
        return {}
    alone = {name: error([name]) for name in names}
    ranked = sorted(names, key=lambda name: -alone[name])
    fewest, enough = 1, len(ranked)
    while fewest < enough:
        middle = (fewest + enough) // 2
        if error(ranked[middle:]) <= tolerance:
            enough = middle
        else:
            fewest = middle + 1
    return {name: alone[name] for name in ranked[:enough]}


def complete(forward: Forward, batch: Batch) -> dict[str, NDArray[np.generic]]:
    """The inputs of a run: those of the batch, and the initial values of the parameters."""
    missing = [name for name in forward.inputs if name not in batch]
    if missing:
        raise MissingCalibrationInput(
            f"The calibration data lacks the input {missing[0]!r}.",
            context=f"inputs: {', '.join(forward.inputs)}; given: {', '.join(batch)}",
            hint="give one array for each of the model's inputs.",
        )
    return {**{name: np.asarray(batch[name]) for name in forward.inputs}, **forward.fixed(forward.parameters)}


def _run(model: ir.Model, batches: Sequence[Mapping[str, NDArray[np.generic]]]) -> Outputs:
    """The outputs for each batch. The weights are lent to the session: a large model exists once."""
    run = GraphRun(model)
    with running():
        return [list(run(batch).values()) for batch in batches]


@contextmanager
def running() -> Iterator[None]:
    """Report that a graph does not run on the calibration data."""
    try:
        yield
    except Exception as failure:  # onnxruntime's exceptions have no class in common but this one
        raise CalibrationFailed(
            "The model cannot be run on the calibration data.",
            context=str(failure),
            hint="check names, shapes and dtypes of the calibration batches.",
        ) from failure


def _distance(outputs: Outputs, exact: Outputs) -> float:
    """Relative L2 distance over all float outputs of all batches."""
    pairs = [
        (mine.astype(np.float64), other.astype(np.float64))
        for ours, theirs in zip(outputs, exact, strict=True)
        for mine, other in zip(ours, theirs, strict=True)
        if np.issubdtype(other.dtype, np.floating)
    ]
    off = sum(float(np.square(mine - other).sum()) for mine, other in pairs)
    size = sum(float(np.square(other).sum()) for _, other in pairs)
    return math.sqrt(off / size if size else off)
