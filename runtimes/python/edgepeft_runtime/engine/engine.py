"""The engine: the bundle's graphs in ONNX Runtime sessions, behind the few verbs a trainer needs.

An engine keeps no parameters of its own. What trains lives in :class:`Values`, which are never changed: a step takes
values and gives new ones, so a step that fails leaves nothing half done, and keeping the best values costs no copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import SparseSpec
from edgepeft_runtime.errors import BatchError, BundleError, TrainingError
from edgepeft_runtime.files.tensorfile import Array

LOSS_SUM, LOSS_WEIGHT, GRAD_NORM = "loss_sum", "loss_weight", "grad_norm"
OPTIMIZER, SELECT, GENERATE = "optimizer.onnx", "select.onnx", "generate.onnx"
LOGITS = "logits"
"""The output of ``generate.onnx`` with the scores of the next token."""

Cache = Mapping[str, Any]
"""Keys and values of what was read, by the names of the inputs that take them, in the engine's own kind of tensor."""


@dataclass(frozen=True)
class Values:
    """Parameters and optimizer state by name, in the engine's own kind of tensor."""

    parameters: Mapping[str, Any]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave: new values, Σ loss, Σ weight (loss = Σ loss / Σ weight), the gradient's L2 norm."""

    values: Values
    loss_sum: float
    loss_weight: float
    grad_norm: float


@dataclass(frozen=True)
class Forward:
    """What one evaluation gave: Σ loss, Σ weight, and the model's outputs by name."""

    loss_sum: float
    loss_weight: float
    outputs: dict[str, Array]


class Engine(Protocol):
    """The verbs a trainer needs of what runs the graphs; batches are checked before they come here."""

    def load(self, parameters: Mapping[str, Array], state: Mapping[str, Array] | None = None) -> Values:
        """Values of arrays; ``state=None`` starts the optimizer anew."""

    def arrays(self, values: Values) -> tuple[dict[str, Array], dict[str, Array]]:
        """Parameters and optimizer state as arrays of their own."""

    def train(self, values: Values, batches: Sequence[Mapping[str, Array]], *, lr: float, step: int) -> Step:
        """One optimizer step over all ``batches``; ``step`` is 1 for the first."""

    def gradients(self, values: Values, batch: Mapping[str, Array], specs: Sequence[SparseSpec]) -> list[Array]:
        """The dense gradients of Σ loss of one batch, by which the elements that train are picked."""

    def evaluate(self, values: Values, batch: Mapping[str, Array]) -> Forward:
        """Loss and outputs of one batch."""

    def infer(self, values: Values, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch without labels."""

    def decode(self, values: Values, inputs: Mapping[str, Array], cache: Cache | None) -> tuple[Array, Cache]:
        """Logits of the last position, and the cache with these positions in it; ``None`` begins one."""

    def close(self) -> None:
        """Let go of the sessions and what they map."""


class PortableEngine:
    """Runs a bundle's own graphs on stock onnxruntime; each session is opened when it is first needed.

    Args:
        bundle: an opened bundle.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime. Equal bits need an equal number.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self._bundle = bundle
        self._threads = threads
        self._sessions: dict[str, ort.InferenceSession] = {}
        manifest = bundle.manifest
        self._trained = [spec.name for spec in manifest.trained]
        self._state = [spec.name for spec in manifest.optimizer.state]
        self._buckets = [bucket.name for bucket in manifest.buckets]
        self._zeros = {bucket.name: _value(np.zeros(bucket.size, np.float32)) for bucket in manifest.buckets}

    def load(self, parameters: Mapping[str, Array], state: Mapping[str, Array] | None = None) -> Values:
        """Values of arrays; ``state=None`` gives the zeros that an optimizer starts with."""
        if state is None:
            state = {spec.name: np.zeros(spec.sizes, spec.dtype) for spec in self._bundle.manifest.optimizer.state}
        held = [{name: _value(array.copy()) for name, array in group.items()} for group in (parameters, state)]
        return Values(*held)

    def arrays(self, values: Values) -> tuple[dict[str, Array], dict[str, Array]]:
        """Parameters and optimizer state as arrays of their own."""
        parameters = {name: np.array(value.numpy()) for name, value in values.parameters.items()}
        return parameters, {name: np.array(value.numpy()) for name, value in values.state.items()}

    def train(self, values: Values, batches: Sequence[Mapping[str, Array]], *, lr: float, step: int) -> Step:
        """One optimizer step over all ``batches``: section 3 of the SPEC.

        Raises:
            BatchError: no label of any batch counts.
            TrainingError: a loss or the gradient is not finite, or onnxruntime failed. ``values`` are as before.
        """
        sums, weights, accumulators = 0.0, 0.0, self._zeros
        wanted = [LOSS_SUM, LOSS_WEIGHT, *(f"{name}.next" for name in self._buckets)]
        for batch in batches:
            loss_sum, loss_weight, *after = self._run("train.onnx", wanted, fed(batch), values.parameters, accumulators)
            sums, weights = sums + _number(loss_sum), weights + _number(loss_weight)
            only_finite("loss", sums, step, lr)
            accumulators = dict(zip(self._buckets, after, strict=True))
        if weights == 0.0:
            raise no_label_counts()
        new, norm = self.update(values, accumulators, lr=lr, step=step, scale=1.0 / weights)
        only_finite("gradient", norm, step, lr)
        return Step(new, sums, weights, norm)

    def update(
        self, values: Values, accumulators: Mapping[str, Any], *, lr: float, step: int, scale: float
    ) -> tuple[Values, float]:
        """New values by ``optimizer.onnx``, and the norm of the scaled gradient."""
        scalars = {"lr": np.float32(lr), "step": np.int64(step), "grad_scale": np.float32(scale)}
        names = [f"{name}.next" for name in (*self._trained, *self._state)]
        numbers = fed({name: np.asarray(number) for name, number in scalars.items()})
        trained = {name: values.parameters[name] for name in self._trained}
        norm, *after = self._run(OPTIMIZER, [GRAD_NORM, *names], numbers, trained, accumulators, values.state)
        count = len(self._trained)
        parameters = {**values.parameters, **dict(zip(self._trained, after[:count], strict=True))}
        return Values(parameters, dict(zip(self._state, after[count:], strict=True))), _number(norm)

    def gradients(self, values: Values, batch: Mapping[str, Array], specs: Sequence[SparseSpec]) -> list[Array]:
        """The dense gradients of Σ loss of one batch, by which the elements that train are picked."""
        names = [str(spec.gradient) for spec in specs]
        return [value.numpy() for value in self._run(SELECT, names, fed(batch), values.parameters)]

    def evaluate(self, values: Values, batch: Mapping[str, Array]) -> Forward:
        """Loss and outputs of one batch."""
        names = [spec.name for spec in self._bundle.manifest.outputs]
        wanted = [LOSS_SUM, LOSS_WEIGHT, *names]
        loss_sum, loss_weight, *outputs = self._run("eval.onnx", wanted, fed(batch), values.parameters)
        return Forward(_number(loss_sum), _number(loss_weight), _read(names, outputs))

    def infer(self, values: Values, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one batch without labels."""
        names = [spec.name for spec in self._bundle.manifest.outputs]
        return _read(names, self._run("infer.onnx", names, fed(inputs), values.parameters))

    def decode(self, values: Values, inputs: Mapping[str, Array], cache: Cache | None) -> tuple[Array, Cache]:
        """One step of ``generate.onnx``; the cache stays in onnxruntime's own tensors."""
        spec = self._bundle.manifest.generation
        assert spec is not None
        if cache is None:
            batch = len(inputs[spec.ids])
            cache = fed({part.past: np.zeros(part.empty(batch), np.float32) for part in spec.cache})
        names = [LOGITS, *(part.present for part in spec.cache)]
        logits, *after = self._run(GENERATE, names, fed(inputs), cache, values.parameters)
        return logits.numpy(), {part.past: value for part, value in zip(spec.cache, after, strict=True)}

    def close(self) -> None:
        """Let go of the sessions and what they map."""
        self._sessions.clear()

    def _run(self, graph: str, outputs: list[str], *feeds: Mapping[str, Any]) -> list[Any]:
        session = self._session(graph)
        inputs = {name: value for feed in feeds for name, value in feed.items()}
        try:
            return list(session.run_with_ort_values(outputs, inputs))
        except Exception as failure:  # onnxruntime's exceptions have no class in common but this one
            raise TrainingError(
                "onnxruntime-failed",
                f"ONNX Runtime {ort.__version__} failed in {graph}.",
                context=str(failure),
                hint="the node's name in the message leads to the layer; less memory is used with smaller batches.",
            ) from failure

    def _session(self, graph: str) -> ort.InferenceSession:
        if graph not in self._sessions:
            try:
                path = str(self._bundle.file(graph))
                options = self._options()
                if graph == OPTIMIZER:
                    # Its threads would go on spinning for a while, and take a core from the next step's forward pass.
                    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                self._sessions[graph] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except BundleError:
                raise
            except Exception as failure:  # as above
                raise BundleError(
                    "graph-not-loaded",
                    f"ONNX Runtime {ort.__version__} cannot open {graph}.",
                    context=str(failure),
                    hint="prepare the bundle again with this version of onnxruntime as its minimum.",
                ) from failure
        return self._sessions[graph]

    def _options(self) -> ort.SessionOptions:
        return session_options(self._threads)


def session_options(threads: int | None) -> ort.SessionOptions:
    """How sessions run: quiet, and with so many threads inside an operator."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # shapes change from batch to batch, and a plan for each takes memory
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _value(array: Array) -> ort.OrtValue:
    """An OrtValue over the memory of ``array``, which must not change from now on."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def fed(arrays: Mapping[str, Array]) -> dict[str, ort.OrtValue]:
    """Arrays as what a session takes; their memory must not change from now on."""
    return {name: _value(array) for name, array in arrays.items()}


def _read(names: Sequence[str], values: Sequence[ort.OrtValue]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def _number(value: ort.OrtValue) -> float:
    return float(value.numpy().item())


def only_finite(what: str, number: float, step: int, lr: float) -> None:
    """Refuse a step whose loss or gradient is not finite."""
    if not math.isfinite(number):
        raise TrainingError(
            "not-finite",
            f"The {what} of step {step} is not finite; the parameters are those of the step before.",
            context=f"found {number}; learning rate {lr:g}",
            hint="use a smaller learning rate or a warm-up, and look for extreme values in the data.",
        )


def no_label_counts() -> BatchError:
    """The error of a step whose every label is the ignored one."""
    return BatchError(
        "no-label-counts",
        "No label of this step counts: there is nothing to learn from.",
        context="every label is the ignored one",
        hint="leave such batches out, or check how the labels were made.",
    )
