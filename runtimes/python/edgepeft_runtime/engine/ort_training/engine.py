"""The engine ``ort-training``: gradients by ``onnxruntime.training.api``, from the official artifacts in a bundle.

The official module updates its parameters in place, while a state never changes. So each call copies the state's
parameters into the module, which computes loss and gradient, and the bundle's own optimizer graph makes the new state.
Weight decay that skips biases, momentum, and checkpoints are therefore those of the portable engine. (The moments of
the official optimizer could be read back only through a file.) Inference runs in the sessions of the same wheel.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.program_checks import WEIGHTS
from edgepeft_runtime.engine.accumulators import Accumulators
from edgepeft_runtime.engine.engine import EvalResult, TrainState
from edgepeft_runtime.engine.portable import PortableEngine
from edgepeft_runtime.engine.row_store import RowStore
from edgepeft_runtime.engine.sessions import OrtTensors, graph_not_loaded, onnxruntime_failed, session_options
from edgepeft_runtime.errors import NoOfficialArtifacts, NoOrtTraining, NothingToCache
from edgepeft_runtime.files.tensorfile import Array

FOLDER = "ort_training"
_TRAIN, _EVAL, _CHECKPOINT = (f"{FOLDER}/{name}" for name in ("training_model.onnx", "eval_model.onnx", "checkpoint"))


class OrtTrainingEngine(PortableEngine):
    """Computes loss, gradient and evaluation by the official module; see the module's docstring.

    Args:
        bundle: an opened bundle with official artifacts.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime.

    Raises:
        BundleError: the bundle has no artifacts, or they do not load.
        TrainingError: this environment has no ONNX Runtime Training.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        if _TRAIN not in bundle.manifest.files:
            raise NoOfficialArtifacts(
                f"The bundle {bundle.path} has no artifacts of ONNX Runtime Training.",
                context=f"{_TRAIN} is not in its manifest",
                hint="run `edgepeft export-ort-training BUNDLE` on the workstation, or use the portable engine.",
            )
        super().__init__(bundle, threads=threads)
        training_package()
        api = import_module("onnxruntime.training.api")
        train, checkpoint, evaluate = (str(bundle.file(name)) for name in (_TRAIN, _CHECKPOINT, _EVAL))
        try:
            self._checkpoint = api.CheckpointState.load_checkpoint(checkpoint)
            options = session_options(threads, bundle.manifest.files[WEIGHTS].bytes)
            self._module = api.Module(train, self._checkpoint, evaluate, "cpu", options)
        except Exception as failure:  # onnxruntime's exceptions have no class in common but this one
            hint = "make the artifacts again with `edgepeft export-ort-training`, or use the portable engine."
            raise graph_not_loaded(FOLDER, failure, hint) from failure
        manifest = bundle.manifest
        self._inputs = [spec.name for spec in (*manifest.inputs, *manifest.labels)]
        self._loaded: OrtTensors | None = None

    def _accumulate(
        self, state: TrainState, batch: Mapping[str, Array], sums: Accumulators, weight: float
    ) -> tuple[float, float]:
        """Accumulate as in the portable engine, but gradients of the mean loss, which the module computes."""
        self._copy_in(state.parameters)
        self._module.train()
        self._module.lazy_reset_grad()
        mean_loss, loss_weight = (float(value) for value in self._forward(batch)[:2])
        fraction = loss_weight / (weight + loss_weight) if loss_weight else 0.0
        self._move(sums, fraction)
        return mean_loss * loss_weight, loss_weight

    def _move(self, means: Accumulators, fraction: float) -> None:
        """Change mean gradients by a batch that has this fraction of the weight of all batches so far."""
        for bucket in self._bundle.manifest.buckets:
            mean = means.array(bucket.name)
            parts = [self._checkpoint.parameters[name].grad.reshape(-1) for name in bucket.members]
            with np.errstate(invalid="ignore", over="ignore"):  # a gradient that is not finite is refused later
                means.replace(bucket.name, mean + (np.concatenate(parts) - mean) * np.float32(fraction))

    def _scale(self, weight: float) -> float:  # noqa: ARG002  (the gradients are means already)
        return 1.0

    def evaluate(self, state: TrainState, batch: Mapping[str, Array]) -> EvalResult:
        """Return loss and outputs of one batch, by the official eval model."""
        self._copy_in(state.parameters)
        self._module.eval()
        loss, weight, *outputs = self._forward(batch)
        return EvalResult(float(loss) * float(weight), float(weight), dict(zip(self._outputs, outputs, strict=True)))

    def keep_activations(self, rows: RowStore | None) -> None:
        """Refuse to keep activations: the official module runs a whole step."""
        if rows is not None:
            raise NothingToCache(
                "The engine ort-training cannot start a step from kept activations.",
                context="the official module runs the whole graph",
                hint="use the portable engine.",
            )

    def close(self) -> None:
        """Release the sessions and the memory they map."""
        super().close()
        del self._module, self._checkpoint

    def _forward(self, batch: Mapping[str, Array]) -> Sequence[Array]:
        try:
            outputs: Sequence[Array] = self._module(*(np.ascontiguousarray(batch[name]) for name in self._inputs))
        except Exception as failure:  # as above
            raise onnxruntime_failed(FOLDER, failure) from failure
        return outputs

    def _copy_in(self, parameters: OrtTensors) -> None:
        """Copy these parameters into the module, unless they are there already."""
        if self._loaded is parameters:
            return
        self._loaded = None
        for name, value in parameters.items():
            self._checkpoint.parameters[name] = value.numpy()
        self._loaded = parameters


def training_package() -> ModuleType:
    """Import ``onnxruntime.training`` without its ``__init__``, which needs torch for parts that are not used here.

    Its modules, such as ``onnxruntime.training.api``, can be imported afterwards.

    Raises:
        TrainingError: this environment has no ONNX Runtime Training.
    """
    folder = Path(ort.__file__).parent / "training"
    if not (folder / "api").is_dir():
        raise NoOrtTraining(
            f"This environment has onnxruntime {ort.__version__}, which is not a training build.",
            context="onnxruntime-training-cpu ends at 1.19.2: x86-64 Linux, Python up to 3.12",
            hint="pip install 'edgepeft[ort-training]' into an environment without onnxruntime, "
            "or use the portable engine.",
        )
    name = "onnxruntime.training"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        package.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = package
    return sys.modules[name]
