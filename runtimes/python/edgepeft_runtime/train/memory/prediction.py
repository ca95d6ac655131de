"""Predicts the memory of a train step: a step is measured, those of other sizes computed.

The memory that does not depend on the batch (Python, onnxruntime, the weights and onnxruntime's copies of them) varies
with the machine, and so does how densely onnxruntime's arena is filled. Both are measured in a process that loads the
graphs and then takes steps on zeros. The activations of any other size follow from the bundle's manifest.

The arena grows by regions of doubling size, so its memory grows in jumps that no smaller step shows. Therefore the step
that is measured has the sizes that are asked for, unless the machine lacks memory.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import NoMemoryFacts, StepFailed, WrongSizes
from edgepeft_runtime.train.memory.peak import Memory, available_memory

SMALLEST = 2
"""Smallest size of a symbolic dimension in a step; a causal language model has nothing to predict at 1."""

LIMITS = (0.8, 2.0)
"""Limits of the overhead, for steps so small that other memory hides their growth."""

UNKNOWN = 1 << 32
"""Bytes of memory that are taken to be available where the system does not report them."""


@dataclass(frozen=True)
class Prediction:
    """The peak memory of a process that trains.

    Attributes:
        bundle: the bundle that is trained.
        resident: bytes of anonymous memory that the process uses whatever the batch.
        file: bytes of file pages: the mapped weights and libraries.
        overhead: bytes of memory for each byte of activations: onnxruntime's arena wastes some, and nodes that
            compute in place save some.
    """

    bundle: Bundle
    resident: float
    file: int
    overhead: float

    def peak(self, sizes: Mapping[str, int]) -> Memory:
        """Return the memory of a step at these sizes of the symbolic dimensions."""
        memory = self.bundle.manifest.memory
        assert memory is not None  # predict() has checked this
        return Memory(int(self.resident + self.overhead * memory.bytes_at(sizes)), self.file)


def predict(bundle: Bundle, sizes: Mapping[str, int], *, largest: int | None = None) -> Prediction:
    """Measure steps of ``sizes``, or of half of them, a quarter, ..., where these would need too much memory.

    Args:
        bundle: an opened bundle.
        sizes: size of every symbolic dimension, at least as large as those that will be predicted.
        largest: bytes of activations of a step that may be measured; by default so many that they fit into the memory
            that is available, whatever the overhead.

    Raises:
        BundleError: the manifest has no section ``memory``, ``sizes`` does not fit it, or a step failed.
    """
    memory = bundle.manifest.memory
    if memory is None:
        raise NoMemoryFacts(
            "The bundle does not say how much memory its activations use.",
            context=str(bundle.path),
            hint="prepare it again with this version of edgepeft.",
        )
    check_sizes(bundle.manifest, sizes)
    limit = (available_memory() or UNKNOWN) / LIMITS[1] if largest is None else largest
    measured = dict(sizes)
    while memory.bytes_at(measured) > limit and (half := _half(measured)) != measured:
        measured = half
    before, peak = _measured(bundle, measured)
    alive = memory.bytes_at(measured)
    overhead = min(max((peak.anonymous - before) / max(alive, 1.0), LIMITS[0]), LIMITS[1])
    return Prediction(bundle, peak.anonymous - overhead * alive, peak.file, overhead)


def _half(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: min(size, max(SMALLEST, size // 2)) for name, size in sizes.items()}


def check_sizes(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Refuse sizes that are not one for each symbolic dimension, within its limits."""
    known = manifest.dimensions
    wrong = [name for name in {*known, *sizes} if name not in known or name not in sizes]
    for name, size in sizes.items():
        largest = known[name].max if name in known else None
        if size < 1 or (largest is not None and size > largest):
            wrong.append(name)
    if wrong:
        limits = [f"{name} up to {dimension.max}" if dimension.max else name for name, dimension in known.items()]
        raise WrongSizes(
            f"The sizes do not fit the bundle: {', '.join(sorted(set(wrong)))}.",
            context=f"symbolic dimensions: {', '.join(limits)}",
            hint="give one size for each, within its limit.",
        )


def measured_peak(bundle: Bundle, sizes: Mapping[str, int]) -> Memory:
    """Return the largest memory of a new process that trains two steps on zeros."""
    return _measured(bundle, sizes)[1]


def _measured(bundle: Bundle, sizes: Mapping[str, int]) -> tuple[int, Memory]:
    """The anonymous memory of such a process before its first step, with the graphs loaded, and its largest memory."""
    pairs = [f"{name}={size}" for name, size in sizes.items()]
    command = [sys.executable, "-m", "edgepeft_runtime.train.memory.probe", str(bundle.path), *pairs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(
            "A step on zeros failed, so its memory cannot be measured.",
            context=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint="train on real data and read the peak that it prints.",
        )
    before, *peak = map(int, done.stdout.split())
    return before, Memory(*peak)
