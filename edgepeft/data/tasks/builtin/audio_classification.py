"""Classes of recordings: wake words, commands, speakers, sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import Model, Task, problem
from edgepeft.data.tasks.recordings import audio_axes, audio_inputs
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class AudioClassification(Task):
    """A folder with a folder of ``.wav`` files for each class, or a table of paths and labels."""

    name: ClassVar[str] = "audio-classification"
    auto_class: ClassVar[str] = "AutoModelForAudioClassification"
    mappings: ClassVar[tuple[str, ...]] = ("AUDIO_CLASSIFICATION",)
    endings: ClassVar[tuple[str, ...]] = ("ForAudioClassification",)
    names_classes: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        return problem(model.config), {}

    def example(self, model: Model) -> dict[str, Array]:
        return audio_inputs(model)

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return audio_axes(example)
