"""The engine ``portable``: runs a bundle's own graphs on stock ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import SparseSpec
from edgepeft_runtime.engine.engine import (
    GENERATE,
    GRAD_NORM,
    LOGITS,
    LOSS_SUM,
    LOSS_WEIGHT,
    OPTIMIZER,
    SELECT,
    Cache,
    EvalResult,
    OrtTensors,
    Step,
    TrainState,
    check_finite,
    no_label_counts,
)
from edgepeft_runtime.errors import BundleError, GraphNotLoaded, OnnxruntimeFailed, TrainingError
from edgepeft_runtime.files.tensorfile import Array


class PortableEngine:
    """Runs the graphs in ONNX Runtime sessions, each of which is created on first use.

    Args:
        bundle: an opened bundle.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime. Runs are bit-for-bit equal only with
            equal numbers of threads.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self._bundle = bundle
        self._threads = threads
        self._sessions: dict[str, ort.InferenceSession] = {}
        manifest = bundle.manifest
        self._outputs = [spec.name for spec in manifest.outputs]
        self._trained = [spec.name for spec in manifest.trained]
        self._state = [spec.name for spec in manifest.optimizer.state]
        self._buckets = [bucket.name for bucket in manifest.buckets]
        self._zeros = as_ort({bucket.name: np.zeros(bucket.size, np.float32) for bucket in manifest.buckets})

    def load(self, parameters: Mapping[str, Array], optimizer: Mapping[str, Array] | None = None) -> TrainState:
        """Copy arrays into a state; without ``optimizer``, the optimizer starts from zeros."""
        if optimizer is None:
            optimizer = {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in self._bundle.manifest.optimizer.state}
        return TrainState(*(as_ort({name: a.copy() for name, a in group.items()}) for group in (parameters, optimizer)))

    def arrays(self, state: TrainState) -> tuple[dict[str, Array], dict[str, Array]]:
        """Copy parameters and optimizer state into arrays."""
        parameters = {name: np.array(value.numpy()) for name, value in state.parameters.items()}
        return parameters, {name: np.array(value.numpy()) for name, value in state.optimizer.items()}

    def train(self, state: TrainState, batches: Sequence[Mapping[str, Array]], *, lr: float, step: int) -> Step:
        """Take one optimizer step over all ``batches``: section 3 of the SPEC.

        Raises:
            BatchError: every label of every batch is ignored.
            TrainingError: a loss or the gradient is not finite, or ONNX Runtime failed. ``state`` stays as it was.
        """
        total, weight = 0.0, 0.0
        gradients: OrtTensors = self._zeros
        for batch in batches:
            loss_sum, loss_weight, gradients = self._accumulate(state, batch, gradients, weight)
            total, weight = total + loss_sum, weight + loss_weight
            check_finite("loss", total, step, lr)
        if weight == 0.0:
            raise no_label_counts()
        after, norm = self._update(state, gradients, lr=lr, step=step, scale=self._scale(weight))
        check_finite("gradient", norm, step, lr)
        return Step(after, total, weight, norm)

    def _accumulate(
        self, state: TrainState, batch: Mapping[str, Array], gradients: OrtTensors, _weight: float
    ) -> tuple[float, float, OrtTensors]:
        """Return ``loss_sum`` and ``loss_weight`` of a batch, and the gradients with those of the batch added.

        ``weight`` is the sum of ``loss_weight`` of the batches before.
        """
        names = [LOSS_SUM, LOSS_WEIGHT, *(f"{name}.next" for name in self._buckets)]
        loss_sum, loss_weight, *after = self._run("train.onnx", names, as_ort(batch), state.parameters, gradients)
        return _number(loss_sum), _number(loss_weight), dict(zip(self._buckets, after, strict=True))

    def _scale(self, weight: float) -> float:
        """Return the factor that makes accumulated gradients those of the mean loss."""
        return 1.0 / weight

    def _update(
        self, state: TrainState, gradients: OrtTensors, *, lr: float, step: int, scale: float
    ) -> tuple[TrainState, float]:
        """Return the state after ``optimizer.onnx``, and the norm of the scaled gradient."""
        names = [f"{name}.next" for name in (*self._trained, *self._state)]
        numbers = {"lr": np.float32(lr), "step": np.int64(step), "grad_scale": np.float32(scale)}
        scalars = as_ort({name: np.asarray(number) for name, number in numbers.items()})
        trained = {name: state.parameters[name] for name in self._trained}
        norm, *after = self._run(OPTIMIZER, [GRAD_NORM, *names], scalars, trained, gradients, state.optimizer)
        count = len(self._trained)
        parameters = {**state.parameters, **dict(zip(self._trained, after[:count], strict=True))}
        return TrainState(parameters, dict(zip(self._state, after[count:], strict=True))), _number(norm)

    def gradients(self, state: TrainState, batch: Mapping[str, Array], specs: Sequence[SparseSpec]) -> list[Array]:
        """Return the dense gradients of ``loss_sum``, by which the elements that train are picked."""
        names = [str(spec.gradient) for spec in specs]
        return [value.numpy() for value in self._run(SELECT, names, as_ort(batch), state.parameters)]

    def evaluate(self, state: TrainState, batch: Mapping[str, Array]) -> EvalResult:
        """Return loss and outputs of one batch."""
        names = [LOSS_SUM, LOSS_WEIGHT, *self._outputs]
        loss_sum, loss_weight, *outputs = self._run("eval.onnx", names, as_ort(batch), state.parameters)
        return EvalResult(_number(loss_sum), _number(loss_weight), self._named(outputs))

    def infer(self, state: TrainState, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one batch without labels."""
        return self._named(self._run("infer.onnx", self._outputs, as_ort(inputs), state.parameters))

    def _named(self, outputs: Sequence[ort.OrtValue]) -> dict[str, Array]:
        return {name: value.numpy() for name, value in zip(self._outputs, outputs, strict=True)}

    def decode(self, state: TrainState, inputs: Mapping[str, Array], cache: Cache | None) -> tuple[Array, Cache]:
        """Run one step of ``generate.onnx``; the cache stays in ONNX Runtime's own tensors."""
        spec = self._bundle.manifest.generation
        assert spec is not None
        if cache is None:
            batch = len(inputs[spec.ids])
            cache = as_ort({part.past: np.zeros(part.empty(batch), np.float32) for part in spec.cache})
        names = [LOGITS, *(part.present for part in spec.cache)]
        logits, *after = self._run(GENERATE, names, as_ort(inputs), cache, state.parameters)
        return logits.numpy(), {part.past: value for part, value in zip(spec.cache, after, strict=True)}

    def close(self) -> None:
        """Release the sessions and the memory they map."""
        self._sessions.clear()

    def _run(self, graph: str, outputs: list[str], *feeds: OrtTensors) -> list[ort.OrtValue]:
        session = self._session(graph)
        inputs = {name: value for feed in feeds for name, value in feed.items()}
        try:
            return list(session.run_with_ort_values(outputs, inputs))
        except Exception as failure:  # onnxruntime's exceptions have no class in common but this one
            raise onnxruntime_failed(graph, failure) from failure

    def _session(self, graph: str) -> ort.InferenceSession:
        if graph not in self._sessions:
            path = str(self._bundle.file(graph))
            options = session_options(self._threads)
            if graph == OPTIMIZER:
                # Its threads would spin for a while after the run, and take a core from the next step's forward pass.
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            try:
                self._sessions[graph] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as failure:  # as above
                hint = "prepare the bundle again with this version of onnxruntime as its minimum."
                raise graph_not_loaded(graph, failure, hint) from failure
        return self._sessions[graph]


def session_options(threads: int | None) -> ort.SessionOptions:
    """Return the options of a session that logs errors only, with so many threads inside an operator."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # shapes change from batch to batch, and a plan for each takes memory
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def as_ort(arrays: Mapping[str, Array]) -> dict[str, ort.OrtValue]:
    """Wrap arrays, without a copy, as inputs of a session; their memory must not change from now on."""
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


def onnxruntime_failed(graph: str, failure: Exception) -> TrainingError:
    """The error of a graph that ONNX Runtime could not run."""
    return OnnxruntimeFailed(
        f"ONNX Runtime {ort.__version__} failed in {graph}.",
        context=str(failure),
        hint="the node's name in the message leads to the layer; smaller batches use less memory.",
    )


def graph_not_loaded(graph: str, failure: Exception, hint: str) -> BundleError:
    """The error of a graph that ONNX Runtime could not load."""
    message = f"ONNX Runtime {ort.__version__} cannot load {graph}."
    return GraphNotLoaded(message, context=str(failure), hint=hint)


def _number(value: ort.OrtValue) -> float:
    return float(value.numpy().item())
