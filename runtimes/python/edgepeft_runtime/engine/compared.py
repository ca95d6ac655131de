"""Compares another execution provider with the CPU before its results are used.

A provider can be wrong without an error: kernels that it cannot start return zeros, and kernels are wrong for some
shapes only. So each program runs on both at first. Where they differ, or the provider fails, the program runs on the
CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.plan import LOSS_SUM
from edgepeft_runtime.bundle.specs import Bucket
from edgepeft_runtime.engine.accumulators import Accumulators
from edgepeft_runtime.engine.program import Runner
from edgepeft_runtime.engine.sessions import OrtTensors
from edgepeft_runtime.errors import BundleError, TrainingError
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import notice

COMPARED_SHAPES = 3
"""Runs with different shapes that are compared, for each program."""
LOSS_LIMIT = 1e-3
"""Largest relative difference of a loss."""
TENSOR_LIMIT = 1e-2
"""Largest relative difference of other tensors, by their L2 norms."""
_ZERO = 1e-6
"""Root mean square below which a tensor counts as zero."""


@dataclass(frozen=True)
class Verdict:
    """The result of the comparison of a program.

    Attributes:
        program: its name.
        accepted: whether the provider runs the program.
        facts: the largest difference, or why the program runs on the CPU, in one line.
    """

    program: str
    accepted: bool
    facts: str


class ComparedPrograms:
    """Runs programs on a provider where it agrees with the CPU, else on the CPU.

    Args:
        name: of the provider.
        buckets: of the gradients.
        cpu: runs the programs on the CPU.
        other: runs them on the provider.
    """

    def __init__(self, name: str, buckets: Sequence[Bucket], cpu: Runner, other: Runner) -> None:
        self._name, self._buckets, self._cpu, self._other = name, buckets, cpu, other
        self._compared: dict[str, set[str]] = {}
        self._verdicts: dict[str, Verdict] = {}

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict for each program that has run."""
        return tuple(self._verdicts.values())

    def watch(self, between: Callable[[int, int], None] | None) -> None:
        """Call ``between`` between two calls of a program: see ``ProgramRunner.watch``."""
        self._cpu.watch(between)
        self._other.watch(between)

    def run(
        self,
        program: str,
        *given: OrtTensors,
        results: Collection[str] | None = None,
        known: OrtTensors | None = None,
        sums: Accumulators | None = None,
    ) -> dict[str, ort.OrtValue]:
        """Run a program: see ``ProgramRunner.run``."""
        if program in self._verdicts and not self._verdicts[program].accepted:
            return self._cpu.run(program, *given, results=results, known=known, sums=sums)
        seen = self._compared.setdefault(program, set())
        shapes = _shapes(*given, known or {})
        if shapes in seen or len(seen) >= COMPARED_SHAPES:
            return self._other.run(program, *given, results=results, known=known, sums=sums)
        seen.add(shapes)
        expected = None if sums is None else Accumulators(self._buckets)
        found = self._cpu.run(program, *given, results=results, known=known, sums=expected)
        sums_of_other = None if sums is None else Accumulators(self._buckets)
        try:
            other = self._other.run(program, *given, results=results, known=known, sums=sums_of_other)
        except (TrainingError, BundleError) as failure:
            self._conclude(Verdict(program, False, f"it failed: {failure.context or failure}"))
        else:
            pairs = [*_pairs(found, other), *_sums(self._buckets, expected, sums_of_other)]
            self._conclude(_verdict(program, pairs))
        if sums is not None and expected is not None:
            sums.add_all(expected)
        return found

    def _conclude(self, verdict: Verdict) -> None:
        self._verdicts[verdict.program] = verdict
        if not verdict.accepted:
            notice(f"The program {verdict.program} runs on the CPU, because {self._name} differs: {verdict.facts}")

    def load(self, program: str) -> None:
        """Load a program's graphs on the CPU; the provider loads them when it is compared."""
        self._cpu.load(program)

    def close(self) -> None:
        """Release the memory that is mapped."""
        self._cpu.close()
        self._other.close()


_Pair = tuple[str, Array, Array]


def _pairs(expected: Mapping[str, ort.OrtValue], found: Mapping[str, ort.OrtValue]) -> Iterator[_Pair]:
    for name, value in expected.items():
        yield name, value.numpy(), found[name].numpy()


def _sums(buckets: Sequence[Bucket], expected: Accumulators | None, found: Accumulators | None) -> Iterator[_Pair]:
    if expected is not None and found is not None:
        for bucket in buckets:
            yield bucket.name, expected.array(bucket.name), found.array(bucket.name)


def _verdict(program: str, pairs: Sequence[_Pair]) -> Verdict:
    """Judge a program by the tensor that exceeds its limit most."""
    excess, facts = max((_difference(*pair) for pair in pairs), key=lambda found: found[0])
    return Verdict(program, excess <= 1, facts)


def _difference(name: str, expected: Array, found: Array) -> tuple[float, str]:
    """Return the difference of two tensors as a multiple of its limit, and the figures."""
    limit = LOSS_LIMIT if name == LOSS_SUM else TENSOR_LIMIT
    if expected.shape != found.shape:
        return np.inf, f"{name}: shape {list(found.shape)} instead of {list(expected.shape)}"
    wanted, got = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        size = float(np.linalg.norm(got - wanted)) / max(float(np.linalg.norm(wanted)), _ZERO * wanted.size**0.5, _ZERO)
    figures = f"relative difference {size:.1e}" if wanted.size != 1 else f"{got.item():g} instead of {wanted.item():g}"
    return (size / limit if np.isfinite(size) else np.inf), f"{name}: {figures}, limit {limit:g}"


def _shapes(*given: OrtTensors) -> str:
    return ", ".join(f"{name}:{value.shape()}" for group in given for name, value in group.items())
