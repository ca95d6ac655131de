"""Fits a train step into so many bytes: how many examples at a time, what is computed twice, how deep it trains."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgepeft_export.bundle import write_bundle
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import Forward
from edgepeft_export.forward.graph import freeze
from edgepeft_export.losses import Loss
from edgepeft_export.memory import MODES
from edgepeft_export.optimizers import Optimizer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.train.memory import Prediction, predict

DEPTHS = (1.0, 0.5, 0.25)
"""Shares of what trains, counted from the output, that are tried where depth may be given up."""

TIME = {"none": 1.0, "block": 1.2}
"""What a step takes with each way of recomputing, about; a smaller micro-batch adds a tenth each time it is halved."""


@dataclass(frozen=True)
class MemoryBudget:
    """What a process that trains may take.

    Attributes:
        bytes: its largest resident set.
        sizes: of every symbolic dimension, the wanted batch among them.
        may_freeze: whether the lower part of what trains may be frozen, so that the backward stops earlier.
    """

    bytes: int
    sizes: Mapping[str, int]
    may_freeze: bool = False


@dataclass(frozen=True)
class Plan:
    """What fits.

    Attributes:
        compiled: the graphs.
        micro_batch: examples that go through the graph at a time; a step adds up as many as it takes.
        recompute: see :data:`edgepeft_export.memory.MODES`.
        frozen: what was to train and does not.
        peak: bytes, as predicted.
    """

    compiled: Compiled
    micro_batch: int
    recompute: str
    frozen: tuple[str, ...]
    peak: int


def plan_for(
    budget: MemoryBudget, forward: Forward, loss: Loss, optimizer: Optimizer, announce: Callable[[str], None]
) -> Plan:
    """The plan that takes the least time, of those that hold with the most that trains.

    Raises:
        EdgepeftError: nothing holds; the least that was found is named.
    """
    batch = _batch_dimension(forward)
    least: list[int] = []
    for share in DEPTHS if budget.may_freeze else DEPTHS[:1]:
        kept, frozen = _upper(forward, share)
        plans = []
        for mode, compiled in _compiled(kept, loss, optimizer):
            announce(f"measuring small steps, recompute {mode}, {len(kept.parameters)} tensors that train")
            prediction = _predicted(compiled, loss, optimizer, budget.sizes)
            least.append(prediction.peak({**budget.sizes, batch: 1}))
            micro = _largest(prediction, budget, batch)
            if micro:
                peak = prediction.peak({**budget.sizes, batch: micro})
                plans.append(Plan(compiled, micro, mode, frozen, peak))
        if plans:
            return min(plans, key=lambda plan: _time(plan, budget.sizes[batch]))
    raise EdgepeftError(
        "memory-budget",
        f"No train step fits into {budget.bytes / 1e6:.0f} MB.",
        context=f"the least found, one example at a time: {min(least) / 1e6:.0f} MB at {dict(budget.sizes)}",
        hint="allow more, shorten the sequence, pack the base (int8, int4), or let depth be given up.",
    )


def _compiled(forward: Forward, loss: Loss, optimizer: Optimizer) -> Iterator[tuple[str, Compiled]]:
    for mode in MODES:
        try:
            yield mode, compile_step(forward, loss, optimizer, mode)
        except EdgepeftError as error:
            if error.reference != "nothing-to-recompute":
                raise


def _predicted(compiled: Compiled, loss: Loss, optimizer: Optimizer, sizes: Mapping[str, int]) -> Prediction:
    """Measured on a bundle of its own, whose graphs stay as they are."""
    graphs = {name: model.clone() for name, model in compiled.graphs.items()}
    with tempfile.TemporaryDirectory() as folder:
        copy = Compiled(**{**vars(compiled), "graphs": graphs})
        return predict(Bundle.open(write_bundle(copy, loss, optimizer, Path(folder) / "bundle")), sizes)


def _largest(prediction: Prediction, budget: MemoryBudget, batch: str) -> int:
    """The largest number of examples at a time that holds, halving from the wanted one; 0 where none does."""
    micro = budget.sizes[batch]
    while micro and prediction.peak({**budget.sizes, batch: micro}) > budget.bytes:
        micro //= 2
    return micro


def _time(plan: Plan, wanted: int) -> float:
    return TIME[plan.recompute] * (1 + 0.1 * math.log2(wanted / plan.micro_batch))


def _batch_dimension(forward: Forward) -> str:
    first = forward.input_values()[0]
    size = first.shape[0] if first.shape is not None and len(first.shape) else None
    if not isinstance(size, ir.SymbolicDim) or size.value is None:
        raise EdgepeftError(
            "memory-budget",
            "The number of examples of a batch is fixed, so it cannot be chosen.",
            context=f"input {first.name}: {first.shape}",
            hint="leave the first dimension of the inputs free (dynamic_axes).",
        )
    return size.value


def _upper(forward: Forward, share: float) -> tuple[Forward, tuple[str, ...]]:
    """The model with that share of its parameters training: those that it reads last."""
    read = list(dict.fromkeys(_read(forward)))
    ordered = [*(name for name in forward.parameters if name not in read), *read]
    frozen = tuple(ordered[: len(ordered) - max(1, round(share * len(ordered)))])
    return (freeze(forward, frozen), frozen) if frozen else (forward, ())


def _read(forward: Forward) -> Iterator[str]:
    """Names of the parameters as nodes read them, from the input to the output."""
    for node in forward.model.graph:
        for value in node.inputs:
            if value is not None and value.name in forward.parameters:
                yield str(value.name)
