"""Texts of recordings, character by character: CTC models such as wav2vec2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import NoText
from edgepeft.data.labels import only_label
from edgepeft.data.records import Records
from edgepeft.data.sound.recordings import Recordings, audio_of, read_all
from edgepeft.data.tasks.base import Model, Reading, Task
from edgepeft.data.tasks.recordings import audio_axes, audio_inputs, listed
from edgepeft.data.text import ignored_index
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.shown import quoted


@dataclass(frozen=True)
class SpeechRecognition(Task):
    """Labels are the ids of characters. The blank is the padding token, as in transformers.

    Frames after the end of a recording do not count.

    ``ctc_loss_reduction`` ``sum``, transformers' default, adds the losses of a batch; here they are averaged, because
    the size of a batch may change. ``mean`` divides each by its length first.
    """

    name: ClassVar[str] = "speech-recognition"
    auto_class: ClassVar[str] = "AutoModelForCTC"
    mappings: ClassVar[tuple[str, ...]] = ("CTC",)
    endings: ClassVar[tuple[str, ...]] = ("ForCTC",)
    loss: ClassVar[str] = "ctc"
    head: ClassVar[str | None] = "Framed"
    sound: ClassVar[bool] = True
    spells: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        config = model.config
        return self.loss, {
            "frames": model.frames,
            "blank": int(getattr(config, "pad_token_id", None) or 0),
            "zero_infinity": bool(getattr(config, "ctc_zero_infinity", False)),
            "length_normalized": getattr(config, "ctc_loss_reduction", "mean") == "mean",
        }

    def example(self, model: Model) -> dict[str, Array]:
        return audio_inputs(model)

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return audio_axes(example)

    def table(self, records: Records, reading: Reading) -> Dataset:
        manifest = reading.bundle.manifest
        audio, dtype = audio_of(manifest, records.source)
        rows, sequences = listed(records, reading), {}
        if reading.labelled:
            if manifest.classes is None:
                raise NoText(
                    "The bundle does not name the character of each class.",
                    context=None,
                    hint="give samples and labels as .npz, or prepare the bundle from a directory with vocab.json.",
                )
            ids, delimiter, label = list[NDArray[np.int64]](), audio.delimiter or " ", only_label(manifest)
            for row in rows:
                text = " ".join(str(row.label).split()).replace(" ", delimiter)
                spelled = [_class_of(character, manifest.classes) for character in text]
                if not text or None in spelled:
                    found = f"{quoted(text[spelled.index(None)])} in {quoted(row.label)}" if text else "no text"
                    hint = f"write it with the characters {' '.join(manifest.classes)}, or leave the line out."
                    raise records.error(row.number, "The text cannot be spelled.", f"found {found}", hint)
                ids.append(np.asarray(spelled, np.int64))
            sequences = {label.name: (ids, ignored_index(label))}
        return Recordings(
            read_all([row.path for row in rows], audio, records.source), audio, dtype, sequences=sequences
        )


def _class_of(character: str, classes: tuple[str, ...]) -> int | None:
    """Return the class of a character, in upper or lower case if only that has one."""
    for form in (character, character.upper(), character.lower()):
        if form in classes:
            return classes.index(form)
    return None
