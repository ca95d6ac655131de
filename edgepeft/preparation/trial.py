"""Run the step of a new bundle on the model's example, before the bundle is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgepeft.preparation.reference_losses import TORCH_LOSSES, loss_alone
from edgepeft_export.errors import StepDiffers, VerificationError
from edgepeft_export.forward import Forward
from edgepeft_export.forward.torch_source.own_loss import argument_name
from edgepeft_export.losses import FIRST_LOGITS, Loss, MeanLoss, OnnxLoss
from edgepeft_export.verification import Example
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec
from edgepeft_runtime.errors import BatchError, NotFinite, OnnxruntimeFailed, TrainingError
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class Trial:
    """Compares the loss of a new bundle with the model's own.

    Attributes:
        forward: The fp32 graph, with the examples on which it was compared.
        loss: The loss that was compiled.
        function: The torch function from which the loss was exported.
        example_labels: Labels for that function.
        rounds: Whether weights were quantized. The difference is reported then, and accepted.
        log: Called with the report.
    """

    forward: Forward
    loss: Loss
    function: Callable[..., Tensor] | None = None
    example_labels: Mapping[str, Tensor] = field(default_factory=dict)
    rounds: bool = False
    log: Callable[[str], None] = print

    def __call__(self, folder: Path) -> None:
        """Open the bundle in ``folder`` and take a step with a learning rate of 0 on each example.

        Raises:
            BundleError: The bundle cannot be opened.
            VerificationError: Its loss differs from the model's.
            TrainingError: onnxruntime cannot run the step.
        """
        self.log("taking a step on the example")
        with Trainer.open(folder) as trainer:
            for example in self.forward.verified.examples:
                self._compare(trainer, example)

    def _compare(self, trainer: Trainer, example: Example) -> None:
        labels = self._labels(trainer.bundle.manifest, example)
        if labels is None:
            return
        expected = self._expected(trainer.bundle.manifest, example, labels)
        try:
            loss = trainer.step({**example.inputs, **labels}, lr=0.0)
        except (BatchError, NotFinite):
            return  # a device must not feed these sizes, although the model accepts them, or an input is infinite
        except TrainingError as error:
            if isinstance(error, OnnxruntimeFailed) or not np.isfinite(expected):
                raise
            return  # the gradient is infinite at this point, as it may be in torch
        off = abs(loss - expected) / max(abs(expected), 1e-3)
        if self.rounds:
            self.log(f"the loss on the example is {loss:.5g}, in fp32 {expected:.5g}")
        elif np.isfinite(expected) and not off <= self.forward.verified.tolerance:
            raise _differs(loss, expected, example)

    def _labels(self, manifest: Manifest, example: Example) -> dict[str, Array] | None:
        """Return labels of the example's sizes: the user's, repeated, or generated ones."""
        sizes = {**self.loss.own_dimensions, **_sizes(manifest, example)}
        draw = np.random.default_rng(0)
        labels = {}
        for spec in manifest.labels:
            shape = _shape(spec, manifest, sizes, example)
            if shape is None:
                return None
            example_labels = self.example_labels.get(spec.name)
            array = _generated(spec, shape, draw) if example_labels is None else _repeated(example_labels, shape)
            labels[spec.name] = _without_padding(array, spec, example)
        return labels

    def _expected(self, manifest: Manifest, example: Example, labels: Mapping[str, Array]) -> float:
        is_plain = isinstance(self.loss, MeanLoss) and self.loss.example_weights is None
        if self.function is None and not (is_plain and manifest.loss.kind in TORCH_LOSSES):
            return loss_alone(self.loss, example.outputs, labels)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in {**example.outputs, **labels}.items()}
        if self.function is None:
            first, targets = tensors[manifest.outputs[0].name], tensors["labels"]
            if manifest.loss.kind == "causal_lm" and FIRST_LOGITS in tensors:  # with a prompt, the first token counts
                first = torch.cat([tensors[FIRST_LOGITS][:, None], first], 1)
                targets = torch.nn.functional.pad(targets, (1, 0))
            with torch.no_grad():
                return float(TORCH_LOSSES[manifest.loss.kind](first.float(), targets, manifest.loss.settings))
        names = {value.name for value in self.loss.model.graph.inputs} if isinstance(self.loss, OnnxLoss) else set()
        given = {name: tensor for name, tensor in tensors.items() if name in names}
        outputs = {name: argument_name(name) for name in example.outputs}
        with torch.no_grad():
            return float(self.function(**{outputs.get(name, name): tensor for name, tensor in given.items()}).mean())


def _sizes(manifest: Manifest, example: Example) -> dict[str, int]:
    """Return the size of each named dimension."""
    arrays: dict[str, Array] = {**example.outputs, **example.inputs}
    return {
        dim: size
        for spec in (*manifest.outputs, *manifest.inputs)
        for dim, size in zip(spec.shape, arrays[spec.name].shape, strict=False)
        if isinstance(dim, str)
    }


def _shape(spec: LabelSpec, manifest: Manifest, sizes: Mapping[str, int], example: Example) -> tuple[int, ...] | None:
    first = example.outputs[manifest.outputs[0].name].shape
    shape = []
    for axis, dim in enumerate(spec.shape):
        size = sizes.get(dim, first[axis] if axis < len(first) else None) if isinstance(dim, str) else dim
        if size is None:
            return None
        shape.append(size)
    return tuple(shape)


def _generated(spec: LabelSpec, shape: tuple[int, ...], draw: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    if np.issubdtype(dtype, np.floating):
        return np.asarray(draw.random(shape)).astype(dtype)
    return np.asarray(draw.integers(0, 2 if spec.classes is None else spec.classes, shape)).astype(dtype)


def _without_padding(labels: Array, spec: LabelSpec, example: Example) -> Array:
    """Set the labels at and past padding to the ignored index: outputs have no meaning there."""
    for name, mask in example.inputs.items():
        if "mask" in name and spec.ignore_index is not None and mask.shape == labels.shape:
            padding = mask == 0
            if labels.ndim > 1:
                padding[:, 1:] |= mask[:, :-1] == 0  # a causal model predicts these from padding
            labels = np.where(padding, np.asarray(spec.ignore_index, labels.dtype), labels)
    return labels


def _repeated(labels: Tensor, shape: tuple[int, ...]) -> Array:
    array: Array = labels.detach().numpy()
    for axis, size in enumerate(shape):
        array = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    return array


def _differs(loss: float, expected: float, example: Example) -> VerificationError:
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in example.inputs.items())
    return StepDiffers(
        f"The loss of the compiled step is {loss:.6g} on the example; the model's own is {expected:.6g}.",
        context=f"sizes: {shapes}",
        hint="the outputs agree, so the loss or a graph pass is wrong: please report the model's operators.",
    )
