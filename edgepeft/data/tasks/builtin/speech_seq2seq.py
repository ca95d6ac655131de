"""Texts of recordings, by an encoder of audio features and a decoder: Whisper, Speech2Text, Moonshine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.records import Records
from edgepeft.data.sound.recordings import Recordings, audio_of, read_all
from edgepeft.data.table import Table
from edgepeft.data.tasks.base import ROWS, Model, Reading, Task, token_ids
from edgepeft.data.tasks.recordings import audio_axes, audio_inputs, listed
from edgepeft.data.tasks.sequences import Sequences, decoder_start, written
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class SpeechSeq2Seq(Task):
    """The labels are the ids of the text, with the tokens of language and task that the tokenizer puts before it.

    The decoder reads them one position later, as transformers does.
    """

    name: ClassVar[str] = "speech-seq2seq"
    auto_class: ClassVar[str] = "AutoModelForSpeechSeq2Seq"
    mappings: ClassVar[tuple[str, ...]] = ("SPEECH_SEQ_2_SEQ",)
    text: ClassVar[bool] = True
    sound: ClassVar[bool] = True
    fields: ClassVar[Mapping[str, str]] = {"decoder_input_ids": "decoder_ids"}

    def special(self, model: Model) -> dict[str, int]:
        return decoder_start(model.config)

    def example(self, model: Model) -> dict[str, Array]:
        return {**audio_inputs(model), "decoder_input_ids": token_ids(model.config, ROWS, model.length - 2, seed=1)}

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return {**audio_axes(example), "decoder_input_ids": {0: "batch", 1: "decoder_sequence"}}

    def table(self, records: Records, reading: Reading) -> Dataset:
        manifest = reading.bundle.manifest
        audio, dtype = audio_of(manifest, records.source)
        rows = listed(records, reading)
        texts = None
        if reading.labelled:
            table = Table(records, [], [row.label for row in rows], [row.number for row in rows])
            texts = written(table, reading, (audio.input,))
        recordings = Recordings(read_all([row.path for row in rows], audio, records.source), audio, dtype)
        return Sequences(recordings, texts, manifest)
