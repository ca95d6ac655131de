"""Texts of recordings, character by character: CTC models such as wav2vec2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import Model, Task
from edgepeft.data.tasks.recordings import audio_axes, audio_inputs
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class SpeechRecognition(Task):
    """Labels are the ids of characters. The blank is the padding token, as in transformers.

    ``ctc_loss_reduction`` ``sum``, transformers' default, adds the losses of a batch; here they are averaged, because
    the size of a batch may change. ``mean`` divides each by its length first.
    """

    name: ClassVar[str] = "speech-recognition"
    auto_class: ClassVar[str] = "AutoModelForCTC"
    mappings: ClassVar[tuple[str, ...]] = ("CTC",)
    endings: ClassVar[tuple[str, ...]] = ("ForCTC",)
    loss: ClassVar[str] = "ctc"

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        config = model.config
        return self.loss, {
            "blank": int(config.pad_token_id or 0),
            "zero_infinity": bool(getattr(config, "ctc_zero_infinity", False)),
            "length_normalized": getattr(config, "ctc_loss_reduction", "mean") == "mean",
        }

    def example(self, model: Model) -> dict[str, Array]:
        return audio_inputs(model)

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return audio_axes(example)
