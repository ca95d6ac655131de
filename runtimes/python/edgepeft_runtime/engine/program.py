"""Runs the programs of a bundle: values by name, each freed after the last call that reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.plan import Step, plan, results_of
from edgepeft_runtime.bundle.program_checks import WEIGHTS
from edgepeft_runtime.bundle.programs import TRAIN
from edgepeft_runtime.bundle.specs import FrozenSpec
from edgepeft_runtime.engine.accumulators import Accumulators
from edgepeft_runtime.engine.sessions import OrtTensors, Sessions
from edgepeft_runtime.errors import BadProgram
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.shown import quoted


class Runner(Protocol):
    """Runs programs: see ``ProgramRunner``, whose methods these are."""

    def run(
        self,
        program: str,
        *given: OrtTensors,
        results: Collection[str] | None = None,
        known: OrtTensors | None = None,
        sums: Accumulators | None = None,
    ) -> dict[str, ort.OrtValue]: ...

    def watch(self, between: Callable[[int, int], None] | None) -> None: ...

    def load(self, program: str) -> None: ...

    def close(self) -> None: ...


class ProgramRunner:
    """Runs programs. A program is checked against its graphs, and their sessions are created, on its first run.

    Args:
        bundle: an opened bundle.
        sessions: of its graphs.
    """

    def __init__(self, bundle: Bundle, sessions: Sessions) -> None:
        self._bundle = bundle
        self._sessions = sessions
        self._frozen = FrozenTensors(bundle)
        self._plans: dict[tuple[str, frozenset[str], frozenset[str], bool], tuple[Step, ...]] = {}
        self._between: Callable[[int, int], None] | None = None

    def watch(self, between: Callable[[int, int], None] | None) -> None:
        """Call ``between`` between two calls of a program, with the number of calls so far and of all.

        What it raises ends the program.
        """
        self._between = between

    def run(
        self,
        program: str,
        *given: OrtTensors,
        results: Collection[str] | None = None,
        known: OrtTensors | None = None,
        sums: Accumulators | None = None,
    ) -> dict[str, ort.OrtValue]:
        """Run the calls of a program that are needed.

        Args:
            program: its name.
            given: the batch and the parameters.
            results: the values to return; by default all results of the program.
            known: values of an earlier run: what they are computed from is not run again.
            sums: to which gradients are added; ``None`` computes none.

        Raises:
            BundleError: the program does not fit its graphs, or a graph cannot be loaded.
            TrainingError: ONNX Runtime failed.
        """
        wanted = results_of(self._bundle.manifest, program) if results is None else results
        values = {name: value for group in (*given, known or {}) for name, value in group.items()}
        steps = self._plan(program, wanted, known or {}, sums is not None)
        for index, step in enumerate(steps):
            if index and self._between is not None:
                self._between(index, len(steps))
            self._call(step, values, sums)
            for name in step.frees:
                del values[name]
        return {name: values[name] for name in wanted}

    def load(self, program: str) -> None:
        """Check a program and create its sessions, as its first run does."""
        self._plan(program, results_of(self._bundle.manifest, program), (), gradients=program == TRAIN)

    def close(self) -> None:
        """Release the memory that is mapped."""
        self._frozen.close()

    def _plan(self, program: str, wanted: Collection[str], known: Collection[str], gradients: bool) -> tuple[Step, ...]:
        key = program, frozenset(wanted), frozenset(known), gradients
        if key not in self._plans:
            manifest, interface_of = self._bundle.manifest, self._sessions.interface
            chosen = plan(manifest, program, interface_of, results=wanted, known=key[2], gradients=gradients)
            self._plans[key] = chosen
        return self._plans[key]

    def _call(self, step: Step, values: dict[str, ort.OrtValue], sums: Accumulators | None) -> None:
        inputs = {name: values[value] if value in values else self._frozen[value] for name, value in step.reads.items()}
        outputs = dict.fromkeys([*step.writes, *(item.output for item in step.accumulate)])
        found = self._sessions.run(step.graph, list(outputs), inputs)
        if sums is not None:
            for item in step.accumulate:
                sums.add(item, found[item.output])
        values.update({value: found[name] for name, value in step.writes.items()})


class FrozenTensors:
    """The tensors of ``weights.bin`` as inputs of graphs: mapped, so that the system may drop their clean pages."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._specs: Mapping[str, FrozenSpec] = {spec.name: spec for spec in bundle.manifest.frozen}
        self._map: Array | None = None

    def __getitem__(self, name: str) -> ort.OrtValue:
        """Wrap a tensor without a copy; raises ``BadProgram`` for a dtype that numpy lacks."""
        spec = self._specs[name]
        dtype = spec.numpy_dtype
        if dtype is None:
            raise BadProgram("A program reads a tensor whose dtype numpy lacks.", f"{quoted(name)}: {spec.dtype}")
        if self._map is None:
            self._map = np.memmap(self._bundle.file(WEIGHTS), np.uint8, "r")
        part = self._map[spec.offset : spec.offset + spec.bytes]
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(part).view(dtype).reshape(spec.sizes))

    def close(self) -> None:
        """Release the map, once no tensor of it is in use."""
        self._map = None
