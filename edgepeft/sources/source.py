"""A model to prepare, with the description of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from edgepeft_runtime.bundle.specs import AudioSpec, ImageSpec, TextSpec


@dataclass(frozen=True)
class Source:
    """A model to prepare, and the description of its inputs.

    Attributes:
        model: A torch module, or the path of an ``.onnx`` file.
        example_inputs: Arguments of ``forward`` by name; ``None`` for an ``.onnx`` file.
        loss: Name of the loss of the task.
        text, image: How texts or images become inputs; ``None`` if the model accepts none.
        classes: Names of the classes, in the order of their indices.
        files: Further files for the bundle, such as ``tokenizer.json``.
        dimension_max: Largest sizes of symbolic dimensions.
        loss_settings: Settings of the loss.
        task: Name of the task, which decides how a device reads data; ``None`` for a model of one's own.
        outputs: Names of the outputs to keep; ``None`` means the logits, or all.
        audio: How recordings become inputs; ``None`` if the model accepts none.
        dynamic_axes: Sizes that may change; ``None`` means the usual ones.
        new_head: Whether the head's weights are random. Quantization is then judged by the size of its error, not by
            the classes with the highest scores.
    """

    model: nn.Module | Path
    example_inputs: Mapping[str, Tensor] | Sequence[Tensor] | Tensor | None = None
    loss: str = "cross_entropy"
    text: TextSpec | None = None
    image: ImageSpec | None = None
    classes: tuple[str, ...] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    dimension_max: Mapping[str, int] = field(default_factory=dict)
    loss_settings: Mapping[str, object] = field(default_factory=dict)
    task: str | None = None
    outputs: Sequence[str] | None = None
    audio: AudioSpec | None = None
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None
    new_head: bool = False
