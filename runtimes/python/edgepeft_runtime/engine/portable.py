"""The engine ``portable``: runs a bundle's own programs on stock ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import OPTIMIZER, Bundle
from edgepeft_runtime.bundle.plan import LOGITS, LOSS_SUM, LOSS_WEIGHT, GraphInterface
from edgepeft_runtime.bundle.programs import EVAL, GENERATE, INFER, SELECT, TRAIN
from edgepeft_runtime.bundle.specs import SparseSpec
from edgepeft_runtime.engine.accumulators import Accumulators
from edgepeft_runtime.engine.activations import Activations
from edgepeft_runtime.engine.compared import ComparedPrograms, Verdict
from edgepeft_runtime.engine.engine import (
    GRAD_NORM,
    Cache,
    EvalResult,
    Step,
    TrainState,
    check_finite,
    no_label_counts,
)
from edgepeft_runtime.engine.program import ProgramRunner, Runner
from edgepeft_runtime.engine.providers import Provider
from edgepeft_runtime.engine.row_store import RowStore
from edgepeft_runtime.engine.sessions import Sessions, as_ort
from edgepeft_runtime.files.tensorfile import Array


class PortableEngine:
    """Runs programs in ONNX Runtime sessions, each of which is created on first use.

    Args:
        bundle: an opened bundle.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime. Runs are bit-for-bit equal only with
            equal numbers of threads.
        profile: folder for the files of onnxruntime's profiler; ``None`` does not profile.
        provider: execution provider to compare with the CPU, and to run the programs in which they agree. The
            optimizer always runs on the CPU.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        profile: Path | None = None,
        provider: Provider | None = None,
    ) -> None:
        self._bundle = bundle
        self._sessions = Sessions(bundle, threads, profile)
        self._programs: Runner = ProgramRunner(bundle, self._sessions)
        self._accelerated = None if provider is None else Sessions(bundle, threads, provider=provider)
        self._compared: ComparedPrograms | None = None
        if provider is not None and self._accelerated is not None:
            other = ProgramRunner(bundle, self._accelerated)
            self._compared = ComparedPrograms(provider.name, bundle.manifest.buckets, self._programs, other)
            self._programs = self._compared
        self._activations: Activations | None = None
        manifest = bundle.manifest
        self._outputs = [spec.name for spec in manifest.outputs]
        self._trained = [spec.name for spec in manifest.trained]
        self._state = [spec.name for spec in manifest.optimizer.state]

    def load(self, parameters: Mapping[str, Array], optimizer: Mapping[str, Array] | None = None) -> TrainState:
        """Copy arrays into a state; without ``optimizer``, the optimizer starts from zeros."""
        if optimizer is None:
            optimizer = {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in self._bundle.manifest.optimizer.state}
        return TrainState(*(as_ort({name: a.copy() for name, a in group.items()}) for group in (parameters, optimizer)))

    def arrays(self, state: TrainState) -> tuple[dict[str, Array], dict[str, Array]]:
        """Copy parameters and optimizer state into arrays."""
        parameters = {name: np.array(value.numpy()) for name, value in state.parameters.items()}
        return parameters, {name: np.array(value.numpy()) for name, value in state.optimizer.items()}

    def load_graphs(self) -> None:
        """Create the sessions of a train step, which the first step does otherwise."""
        self._programs.load(TRAIN)

    def train(self, state: TrainState, batches: Sequence[Mapping[str, Array]], *, lr: float, step: int) -> Step:
        """Take one optimizer step over all ``batches``: section 3 of the SPEC.

        Raises:
            BatchError: every label of every batch is ignored.
            TrainingError: a loss or the gradient is not finite, or ONNX Runtime failed. ``state`` stays as it was.
        """
        total, weight = 0.0, 0.0
        sums = Accumulators(self._bundle.manifest.buckets)
        for batch in batches:
            loss_sum, loss_weight = self._accumulate(state, batch, sums, weight)
            total, weight = total + loss_sum, weight + loss_weight
            check_finite("loss", total, step, lr)
        if weight == 0.0:
            raise no_label_counts()
        after, norm = self._update(state, sums, lr=lr, step=step, scale=self._scale(weight))
        check_finite("gradient", norm, step, lr)
        return Step(after, total, weight, norm)

    def _accumulate(
        self, state: TrainState, batch: Mapping[str, Array], sums: Accumulators, _weight: float
    ) -> tuple[float, float]:
        """Add the gradients of a batch, and return its ``loss_sum`` and ``loss_weight``.

        ``weight`` is the sum of ``loss_weight`` of the batches before.
        """
        known = None if self._activations is None else self._activations.known(batch, state.parameters)
        found = self._programs.run(TRAIN, as_ort(batch), state.parameters, known=known, sums=sums)
        return _number(found[LOSS_SUM]), _number(found[LOSS_WEIGHT])

    def _scale(self, weight: float) -> float:
        """Return the factor that makes accumulated gradients those of the mean loss."""
        return 1.0 / weight

    def _update(
        self, state: TrainState, sums: Accumulators, *, lr: float, step: int, scale: float
    ) -> tuple[TrainState, float]:
        """Return the state after ``optimizer.onnx``, and the norm of the scaled gradient."""
        names = [f"{name}.next" for name in (*self._trained, *self._state)]
        numbers = {"lr": np.float32(lr), "step": np.int64(step), "grad_scale": np.float32(scale)}
        scalars = as_ort({name: np.asarray(number) for name, number in numbers.items()})
        trained = {name: state.parameters[name] for name in self._trained}
        fed = {**scalars, **trained, **sums.values(), **state.optimizer}
        after = self._sessions.run(OPTIMIZER, [GRAD_NORM, *names], fed)
        parameters = {**state.parameters, **{name: after[f"{name}.next"] for name in self._trained}}
        optimizer = {name: after[f"{name}.next"] for name in self._state}
        return TrainState(parameters, optimizer), _number(after[GRAD_NORM])

    def gradients(self, state: TrainState, batch: Mapping[str, Array], specs: Sequence[SparseSpec]) -> list[Array]:
        """Return the dense gradients of ``loss_sum``, by which the elements that train are picked."""
        names = [str(spec.gradient) for spec in specs]
        found = self._programs.run(SELECT, as_ort(batch), state.parameters, results=names)
        return [found[name].numpy() for name in names]

    def evaluate(self, state: TrainState, batch: Mapping[str, Array]) -> EvalResult:
        """Return loss and outputs of one batch."""
        found = self._programs.run(EVAL, as_ort(batch), state.parameters)
        return EvalResult(_number(found[LOSS_SUM]), _number(found[LOSS_WEIGHT]), self._arrays_of(found))

    def infer(self, state: TrainState, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one batch without labels."""
        return self._arrays_of(self._programs.run(INFER, as_ort(inputs), state.parameters))

    def _arrays_of(self, found: Mapping[str, ort.OrtValue]) -> dict[str, Array]:
        return {name: found[name].numpy() for name in self._outputs}

    def decode(self, state: TrainState, inputs: Mapping[str, Array], cache: Cache | None) -> tuple[Array, Cache]:
        """Run the program ``generate`` once; the cache stays in ONNX Runtime's own tensors."""
        spec = self._bundle.manifest.generation
        assert spec is not None
        if cache is None:
            batch = len(inputs[spec.ids])
            cache = as_ort({part.past: np.zeros(part.empty(batch), np.float32) for part in spec.cache})
        found = self._programs.run(GENERATE, as_ort(inputs), cache, state.parameters)
        return found[LOGITS].numpy(), {part.past: found[part.present] for part in spec.cache}

    def keep_activations(self, rows: RowStore | None) -> None:
        """Start ``train`` from the value that the manifest's ``cache`` names, kept there; ``None`` stops that."""
        self._activations = None if rows is None else Activations(self._bundle, self._programs, rows)

    def watch(self, between: Callable[[int, int], None] | None) -> None:
        """Call ``between`` between two calls of a program, with the number of calls so far and of all.

        What it raises ends the program. ``None`` stops that.
        """
        self._programs.watch(between)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict for each program that has run with another execution provider."""
        return () if self._compared is None else self._compared.verdicts

    def end_profiling(self) -> dict[str, Path]:
        """Write the profiler's file of each graph that has run, and return them by the graph's file."""
        return self._sessions.end_profiling()

    def interface(self, graph: str) -> GraphInterface:
        """Return the names of a graph's inputs and outputs."""
        return self._sessions.interface(graph)

    def close(self) -> None:
        """Release the sessions and the memory they map."""
        self._programs.close()
        self._sessions.close()
        if self._accelerated is not None:
            self._accelerated.close()


def _number(value: ort.OrtValue) -> float:
    return float(value.numpy().item())
