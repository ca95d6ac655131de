"""Classes of recordings: wake words, commands, speakers, sounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgepeft.data.labels import BadLabel, label_reader, only_label
from edgepeft.data.pictures.folder import class_labels, files_in, notice_skipped
from edgepeft.data.records import Records
from edgepeft.data.sound.recordings import SUFFIXES, Recordings, audio_of, read_all
from edgepeft.data.tasks.base import Model, Reading, Task, problem
from edgepeft.data.tasks.columns import notice_unused
from edgepeft.data.tasks.recordings import audio_axes, audio_inputs, listed
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class AudioClassification(Task):
    """A folder with a folder of ``.wav`` files for each class, or a table of paths and labels."""

    name: ClassVar[str] = "audio-classification"
    auto_class: ClassVar[str] = "AutoModelForAudioClassification"
    mappings: ClassVar[tuple[str, ...]] = ("AUDIO_CLASSIFICATION",)
    endings: ClassVar[tuple[str, ...]] = ("ForAudioClassification",)
    sound: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        return problem(model.config), {}

    def example(self, model: Model) -> dict[str, Array]:
        return audio_inputs(model)

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return audio_axes(example)

    def folder(self, path: Path, reading: Reading) -> Dataset:
        notice_unused(str(path), reading.columns, reading.template)
        manifest = reading.bundle.manifest
        audio, dtype = audio_of(manifest, str(path))
        files, skipped = files_in(path, SUFFIXES)
        if not files:
            hint = "put the recordings of each class in a folder with the name of the class."
            raise NoData(f"{path} contains no recordings.", context=f"suffixes: {', '.join(SUFFIXES)}", hint=hint)
        notice_skipped(path, skipped, "recordings")
        labels = {only_label(manifest).name: class_labels(path, files, manifest)} if reading.labelled else {}
        return Recordings(read_all(files, audio, str(path)), audio, dtype, labels)

    def table(self, records: Records, reading: Reading) -> Dataset:
        manifest = reading.bundle.manifest
        audio, dtype = audio_of(manifest, records.source)
        rows = listed(records, reading)
        labels = {}
        if reading.labelled:
            read, values = label_reader(manifest), list[Array]()
            for row in rows:
                try:
                    values.append(read(row.label))
                except BadLabel as failure:
                    hint = "correct the label, or leave the line out."
                    raise records.error(row.number, "The label is not known.", str(failure), hint) from None
            labels = {only_label(manifest).name: np.stack(values)}
        return Recordings(read_all([row.path for row in rows], audio, records.source), audio, dtype, labels)
