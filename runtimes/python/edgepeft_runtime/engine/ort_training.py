"""The engine ``ort-training``: gradients by ``onnxruntime.training.api``, from the official artifacts in a bundle.

Its module holds parameters that change in place, while values here never change. So the module is given the values of
each call, computes loss and gradient, and the bundle's own optimizer graph makes new values: weight decay that spares
biases, momentum, and checkpoints are those of the portable engine. (The moments of the official optimizer could not be
read back but through a file.) Everything that does not train runs on the inference sessions of the same wheel.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine.engine import (
    Forward,
    PortableEngine,
    Step,
    Values,
    fed,
    no_label_counts,
    only_finite,
    session_options,
)
from edgepeft_runtime.errors import BundleError, TrainingError
from edgepeft_runtime.files.tensorfile import Array

FOLDER = "ort_training"
_TRAIN, _EVAL, _CHECKPOINT = (f"{FOLDER}/{name}" for name in ("training_model.onnx", "eval_model.onnx", "checkpoint"))


class OrtTrainingEngine(PortableEngine):
    """Loss, gradient and evaluation by the official module; see the module's docstring.

    Args:
        bundle: an opened bundle with official artifacts.
        threads: threads inside an operator; ``None`` leaves it to onnxruntime.

    Raises:
        BundleError: the bundle has no artifacts, or they do not load.
        TrainingError: this environment has no ONNX Runtime Training.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        if _TRAIN not in bundle.manifest.files:
            raise BundleError(
                "no-official-artifacts",
                f"The bundle {bundle.path} holds no artifacts of ONNX Runtime Training.",
                context=f"{_TRAIN} is not in its manifest",
                hint="run `edgepeft export-ort-training BUNDLE` on the workstation, or use the portable engine.",
            )
        super().__init__(bundle, threads=threads)
        training_package()
        api = import_module("onnxruntime.training.api")
        try:
            self._checkpoint = api.CheckpointState.load_checkpoint(str(bundle.file(_CHECKPOINT)))
            files = str(bundle.file(_TRAIN)), self._checkpoint, str(bundle.file(_EVAL))
            self._module = api.Module(*files, "cpu", session_options(threads))
        except Exception as failure:  # onnxruntime's exceptions have no class in common but this one
            raise BundleError(
                "graph-not-loaded",
                f"ONNX Runtime Training {ort.__version__} cannot open the artifacts in {bundle.path / FOLDER}.",
                context=str(failure),
                hint="make them anew with `edgepeft export-ort-training`, or use the portable engine.",
            ) from failure
        manifest = bundle.manifest
        self._inputs = [spec.name for spec in (*manifest.inputs, *manifest.labels)]
        self._placed: Mapping[str, Any] | None = None

    def train(self, values: Values, batches: Sequence[Mapping[str, Array]], *, lr: float, step: int) -> Step:
        """One optimizer step over all ``batches``.

        Raises:
            BatchError: no label of any batch counts.
            TrainingError: a loss or the gradient is not finite, or onnxruntime failed. ``values`` are as before.
        """
        self._place(values.parameters)
        sums, weights = 0.0, 0.0
        means = {bucket.name: np.zeros(bucket.size, np.float32) for bucket in self._bundle.manifest.buckets}
        for batch in batches:
            self._module.train()
            self._module.lazy_reset_grad()
            loss, weight, *_ = self._forward(batch)
            sums, weights = sums + float(loss) * float(weight), weights + float(weight)
            only_finite("loss", sums, step, lr)
            self._take_in(means, float(weight) / weights if weights else 0.0)
        if weights == 0.0:
            raise no_label_counts()
        new, norm = self.update(values, fed(means), lr=lr, step=step, scale=1.0)
        only_finite("gradient", norm, step, lr)
        return Step(new, sums, weights, norm)

    def _take_in(self, means: Mapping[str, Array], share: float) -> None:
        """Take the gradient of a batch's mean loss into the mean of all, of whose weight the batch has this share."""
        for bucket in self._bundle.manifest.buckets:
            parts = [self._checkpoint.parameters[name].grad.reshape(-1) for name in bucket.members]
            mean = means[bucket.name]
            mean += (np.concatenate(parts) - mean) * np.float32(share)

    def evaluate(self, values: Values, batch: Mapping[str, Array]) -> Forward:
        """Loss and outputs of one batch, by the official eval model."""
        self._place(values.parameters)
        self._module.eval()
        loss, weight, *outputs = self._forward(batch)
        names = [spec.name for spec in self._bundle.manifest.outputs]
        return Forward(float(loss) * float(weight), float(weight), dict(zip(names, outputs, strict=True)))

    def close(self) -> None:
        """Let go of the sessions and what they map."""
        super().close()
        del self._module, self._checkpoint

    def _forward(self, batch: Mapping[str, Array]) -> Sequence[Array]:
        try:
            found: Sequence[Array] = self._module(*(np.ascontiguousarray(batch[name]) for name in self._inputs))
        except Exception as failure:  # as above
            raise TrainingError(
                "onnxruntime-failed",
                f"ONNX Runtime Training {ort.__version__} failed.",
                context=str(failure),
                hint="the node's name in the message leads to the layer; less memory is used with smaller batches.",
            ) from failure
        return found

    def _place(self, parameters: Mapping[str, Any]) -> None:
        """Give the module these parameters, where it does not hold them already."""
        if self._placed is parameters:
            return
        self._placed = None
        for name, value in parameters.items():
            self._checkpoint.parameters[name] = value.numpy()
        self._placed = parameters


def training_package() -> ModuleType:
    """``onnxruntime.training`` without its ``__init__``, which wants torch for what is not needed here.

    Its modules, such as ``onnxruntime.training.api``, can be imported afterwards.

    Raises:
        TrainingError: this environment has no ONNX Runtime Training.
    """
    folder = Path(ort.__file__).parent / "training"
    if not (folder / "api").is_dir():
        raise TrainingError(
            "no-ort-training",
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
