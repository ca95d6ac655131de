"""Fit a train step into a memory budget by its micro-batch, segments, chunks and training depth."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgepeft.errors import FixedBatchSize, MemoryBudgetTooSmall
from edgepeft_export.bundle import write_bundle
from edgepeft_export.compile import Compiled, chosen_weights, compile_step
from edgepeft_export.forward import Forward
from edgepeft_export.forward.graph import freeze
from edgepeft_export.losses import Loss
from edgepeft_export.optimizers import Optimizer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.figures import size
from edgepeft_runtime.train.memory.prediction import predict

DEPTHS = (1.0, 0.5, 0.25)
"""Fractions of the parameters, counted from the output, to try if part of them may be frozen."""

WAYS = (("constant", "normal", 1.0), ("input", "normal", 1.2), ("input", "small", 1.5))
"""Weights, chunks and relative duration of a step. Each halving of the micro-batch adds a tenth."""


@dataclass(frozen=True)
class MemoryBudget:
    """Memory that a process may use while it trains.

    Attributes:
        bytes: Largest anonymous memory. File pages, such as mapped weights, are not counted: the system can drop them.
        sizes: Size of every symbolic dimension, including the batch size to train with.
        may_freeze: Whether the lower part of the parameters may be frozen, so that the backward pass stops earlier.
    """

    bytes: int
    sizes: Mapping[str, int]
    may_freeze: bool = False


@dataclass(frozen=True)
class StepPlan:
    """A compiled train step.

    Attributes:
        compiled: The graphs.
        chunks: How much of the largest tensors exists at once; see ``edgepeft_export.chunks.CHUNKS``.
        micro_batch: Examples that go through the graph at a time; ``None`` leaves it to the device.
        frozen: Names of parameters that are frozen to save memory.
        peak: Predicted peak of anonymous memory in bytes; 0 without a budget.
    """

    compiled: Compiled
    chunks: str
    micro_batch: int | None = None
    frozen: tuple[str, ...] = ()
    peak: int = 0

    def __str__(self) -> str:
        frozen = f", {len(self.frozen)} tensors frozen" if self.frozen else ""
        way = "one graph" if self.compiled.segments is None else f"segments, {self.chunks} chunks"
        return f"{self.micro_batch} examples at a time, {way}{frozen}: {self.peak / 1e6:.0f} MB"


def plan_for(
    budget: MemoryBudget, forward: Forward, loss: Loss, optimizer: Optimizer, log: Callable[[str], None]
) -> StepPlan:
    """Return the fastest plan within the budget, among those in which the most parameters train.

    Raises:
        EdgepeftError: No plan stays within the budget; the error names the smallest memory that any plan needs.
    """
    batch = _batch_dimension(forward)
    least: list[int] = []
    for fraction in DEPTHS if budget.may_freeze else DEPTHS[:1]:
        upper, frozen = _upper(forward, fraction)
        plans = []
        for chunks, time, compiled in _compiled(upper, loss, optimizer):
            way = "one graph" if compiled.segments is None else f"segments, {chunks} chunks"
            log(f"measuring steps, {way}, {len(upper.parameters)} trained tensors")
            micro, peak = _largest(compiled, loss, optimizer, budget, batch)
            least.append(peak)
            if peak <= budget.bytes:
                time *= 1 + 0.1 * math.log2(budget.sizes[batch] / micro)
                plans.append((time, StepPlan(compiled, chunks, micro, frozen, peak)))
        if plans:
            return min(plans, key=lambda timed: timed[0])[1]
    at = ", ".join(f"{name}={value}" for name, value in budget.sizes.items())
    raise MemoryBudgetTooSmall(
        f"No train step fits into {size(budget.bytes)}.",
        context=f"smallest plan, one example at a time: {size(int(min(least)))} at {at}",
        hint="allow more memory, shorten the sequence, quantize the base (int8, int4), or allow parameters to be "
        "frozen (may_freeze=True, --allow-depth).",
    )


def _compiled(forward: Forward, loss: Loss, optimizer: Optimizer) -> Iterator[tuple[str, float, Compiled]]:
    """Yield chunks, relative duration and graphs of each way: large models in segments, others in one graph as well."""
    for weights, chunks, time in WAYS:
        if weights == "constant" and chosen_weights(forward) != weights:
            continue
        compiled = compile_step(forward, loss, optimizer, weights, chunks)
        if weights == "constant" or compiled.segments is not None:
            yield chunks, time, compiled


def _largest(compiled: Compiled, loss: Loss, optimizer: Optimizer, budget: MemoryBudget, batch: str) -> tuple[int, int]:
    """Return the largest micro-batch within the budget, by halving the full batch, or 1; and its peak.

    A step of that size is measured, in a bundle of copies of the graphs. The larger step that is measured before it
    only says which halves need no try, because the memory grows in jumps.
    """
    graphs = {name: model.clone() for name, model in compiled.graphs.items()}
    with tempfile.TemporaryDirectory() as folder:
        copy = Compiled(**{**vars(compiled), "graphs": graphs})
        bundle = Bundle.open(write_bundle(copy, loss, optimizer, Path(folder) / "bundle"))
        micro = budget.sizes[batch]
        while True:
            prediction = predict(bundle, {**budget.sizes, batch: micro})
            peak = prediction.peak({**budget.sizes, batch: micro}).anonymous
            if peak <= budget.bytes or micro == 1:
                return micro, peak
            micro = max(1, micro // 2)
            while micro > 1 and prediction.peak({**budget.sizes, batch: micro}).anonymous > budget.bytes:
                micro //= 2


def _batch_dimension(forward: Forward) -> str:
    first = forward.input_values()[0]
    size = first.shape[0] if first.shape is not None and len(first.shape) else None
    if not isinstance(size, ir.SymbolicDim) or size.value is None:
        raise FixedBatchSize(
            "The number of examples of a batch is fixed, so it cannot be chosen.",
            context=f"input {first.name}: {first.shape}",
            hint="make the first dimension of the inputs dynamic (dynamic_axes).",
        )
    return size.value


def _upper(forward: Forward, fraction: float) -> tuple[Forward, tuple[str, ...]]:
    """Return the graph in which only the last-read fraction of the parameters trains, and the names of the others."""
    read = list(dict.fromkeys(_read(forward)))
    ordered = [*(name for name in forward.parameters if name not in read), *read]
    frozen = tuple(ordered[: len(ordered) - max(1, round(fraction * len(ordered)))])
    return (freeze(forward, frozen), frozen) if frozen else (forward, ())


def _read(forward: Forward) -> Iterator[str]:
    """Yield the names of the parameters as nodes read them, from the input to the output."""
    for node in forward.model.graph:
        for value in node.inputs:
            if value is not None and value.name in forward.parameters:
                yield str(value.name)
