"""Advice that makes a step faster or smaller, derived from its measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.figures import percent, size
from edgepeft_runtime.profiling.layers import AGAIN, BACKWARD, UPDATE
from edgepeft_runtime.profiling.summary import Summary

MOST = 3
"""Number of advices that are kept."""

TIME, MEMORY = "time", "memory"
_LEAST = 0.1
"""Fraction of the time or memory from which on an advice is worth its effort."""
_SHORT = 2e-5
"""Seconds of a kernel that is mostly its start."""
_MATMULS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_HALVED = {
    "batch": "Batches half as large, with --accumulate 2 for the same update,",
    "sequence": "Texts half as long (--max-length)",
}


@dataclass(frozen=True)
class Advice:
    """One thing that would help.

    Attributes:
        saves: ``time`` or ``memory``.
        fraction: of the time, or of the anonymous memory, that it is about. It saves no more than that.
        text: the measurement, and what to do.
    """

    saves: str
    fraction: float
    text: str


def advices(manifest: Manifest, summary: Summary) -> tuple[Advice, ...]:
    """Return the first three advices, by the fraction of the time or memory that they are about."""
    found = [*_of_time(manifest, summary), *_of_depth(summary), *_of_memory(manifest, summary)]
    worth = [replace(advice, fraction=min(advice.fraction, 1.0)) for advice in found if advice.fraction >= _LEAST]
    return tuple(sorted(worth, key=lambda advice: -advice.fraction)[:MOST])


def _of_time(manifest: Manifest, summary: Summary) -> Iterator[Advice]:
    whole = max(summary.kernels, 1e-9)
    if not any(spec.elements is not None for spec in manifest.frozen):
        products = sum(row.seconds for row in summary.operators if row.name in _MATMULS) / whole
        text = f"{percent(products)} of the time is in float32 matrix products: prepare with --compute int8."
        yield Advice(TIME, products, text)
    idle = 1 - summary.threads / summary.cores
    yield Advice(TIME, idle, f"{summary.threads} of {summary.cores} cores are used: raise --threads.")
    if summary.step > 2 * summary.kernels:
        outside = 1 - summary.kernels / summary.step
        text = (
            f"{percent(outside)} of a step is outside of kernels: other programs use the processor, or the batches are"
        )
        yield Advice(TIME, outside, f"{text} so small that calls cost more than their work.")
    padding = summary.padding or 0.0
    text = f"{percent(padding)} of the tokens are padding: use smaller batches (with --accumulate), of similar lengths."
    yield Advice(TIME, padding, text)
    text = f"{percent(summary.cached or 0.0)} of the time is below all that trains: later epochs skip it with"
    yield Advice(TIME, summary.cached or 0.0, f"{text} --cache activations.")
    again = _of_pass(summary, AGAIN)
    text = f"{percent(again)} of the time computes activations a second time: where there is more memory, prepare with"
    yield Advice(TIME, again, f"{text} --weights constant.")
    update = _of_pass(summary, UPDATE)
    text = f"{percent(update)} of the time is the optimizer's: --accumulate 4 runs it for one batch of four."
    yield Advice(TIME, 0.75 * update, text)
    short = sum(row.seconds for row in summary.operators if row.seconds < _SHORT * row.kernels) / whole
    text = f"{percent(short)} of the time is in kernels of less than 20 µs, most of which is their start: raise"
    yield Advice(TIME, short, f"{text} --batch-size.")


def _of_depth(summary: Summary) -> Iterator[Advice]:
    """The cost of the gradient in the lower half of the blocks."""
    blocks = [row for row in summary.blocks if row.name[-1:].isdecimal()]
    backward = _of_pass(summary, BACKWARD) + _of_pass(summary, AGAIN)
    if len(blocks) >= 4:
        lower = sum(row.seconds for row in blocks[: len(blocks) // 2]) / max(summary.kernels, 1e-9) * backward
        text = (
            f"The gradient crosses {len(blocks)} blocks: with adapters in the upper half alone, {percent(lower)} less."
        )
        yield Advice(TIME, lower, text)


def _of_memory(manifest: Manifest, summary: Summary) -> Iterator[Advice]:
    memory = summary.memory
    if memory.activations is None or not memory.anonymous:
        return
    if _of_pass(summary, AGAIN) == 0:
        text = f"Activations are {size(memory.activations)} of {size(memory.anonymous)} of anonymous memory:"
        yield Advice(MEMORY, memory.activations / memory.anonymous, f"{text} prepare with --weights input.")
    for name, change in _HALVED.items():
        saved = _halved(manifest, summary.sizes, name)
        text = f"{change} need {size(saved)} less of {size(memory.anonymous)} of anonymous memory."
        yield Advice(MEMORY, saved / memory.anonymous, text)


def _halved(manifest: Manifest, sizes: Mapping[str, int], name: str) -> int:
    """Return the bytes of activations that half the size of a dimension saves."""
    if manifest.memory is None or sizes.get(name, 1) < 2:
        return 0
    return manifest.memory.bytes_at(sizes) - manifest.memory.bytes_at({**sizes, name: sizes[name] // 2})


def _of_pass(summary: Summary, name: str) -> float:
    return sum(row.seconds for row in summary.passes if row.name == name) / max(summary.kernels, 1e-9)
