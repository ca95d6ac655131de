"""Inputs of models of sound: samples, or features over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgepeft.data.errors import WrongColumns
from edgepeft.data.records import Records
from edgepeft.data.tasks.base import ROWS, Model, Reading, first_present, floats, number
from edgepeft.data.tasks.columns import LABEL, TEXT
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some

PATHS, LABELS = ("path", "file", "audio", "wav"), (LABEL, "sentence", "transcription", TEXT)
"""Columns of paths, relative to the table's folder, and of labels or texts."""

MASK = "attention_mask"
"""The input that is 1 for the samples of a recording, and 0 for the silence after it."""

SAMPLES = 4400
"""Samples of the example, about a quarter of a second. Their frames are odd, so that SEW, which pools pairs of frames
and repeats them, traces the frame that it adds at the end; of even numbers it adds none."""

FRAMES = 40
"""Frames of features of the example."""


def audio_inputs(model: Model) -> dict[str, Array]:
    """Return a batch of samples ``input_values`` ``[examples, samples]``, or of features, as the model accepts them.

    Samples may have a mask.
    """
    config = model.config
    if "input_values" in model.arguments:
        length, bins = getattr(config, "max_length", None), getattr(config, "num_mel_bins", None)
        if length and bins:  # a spectrogram transformer, which has a position for each patch
            return {"input_values": floats(ROWS, int(length), int(bins)) - 0.5}
        values: dict[str, Array] = {"input_values": floats(ROWS, SAMPLES) - 0.5}
        return (
            {**values, MASK: np.ones((ROWS, SAMPLES), np.int64)} if model.masked and MASK in model.arguments else values
        )
    usual = number(getattr(config, "encoder_config", None) or config, "num_mel_bins", default=80)  # Parakeet's
    bins = number(config, "num_mel_bins", "feature_projection_input_dim", default=usual)
    positions = getattr(config, "max_source_positions", None)
    if "decoder_input_ids" not in model.arguments and positions is None:
        return {"input_features": floats(ROWS, FRAMES, bins) - 0.5}
    if getattr(config, "input_feat_per_channel", None):  # Speech2Text: frames first
        return {"input_features": floats(ROWS, FRAMES, int(config.input_feat_per_channel)) - 0.5}
    return {"input_features": floats(ROWS, bins, 2 * int(positions or FRAMES)) - 0.5}


def audio_axes(example: Mapping[str, Array]) -> dict[str, dict[int, str]]:
    """Return the sizes that may change: examples, and the length of samples."""
    return {name: {0: "batch", 1: "samples"} if array.ndim == 2 else {0: "batch"} for name, array in example.items()}


class Listed(NamedTuple):
    """A row of a table of recordings."""

    number: int
    path: Path
    label: object


def listed(records: Records, reading: Reading) -> list[Listed]:
    """Return the rows of a table of paths, with labels if they are needed."""
    given, present = reading.columns, records.columns
    paths = given.texts[0] if given.texts != (TEXT,) else first_present(present, *PATHS)
    labels = given.label if given.label != LABEL else first_present(present, *LABELS)
    if paths is None or (labels is None and reading.labelled):
        raise WrongColumns(
            f"{records.source}: There is no column of {'paths' if paths is None else 'labels'}.",
            context=f"columns: {some(present, 20)}",
            hint=f"name it (--text-column, --label-column), or call the columns {PATHS[0]!r} and {LABEL!r}.",
        )
    wanted = [paths, labels] if reading.labelled and labels is not None else [paths]
    folder = Path(records.source).parent
    rows = [
        Listed(line, folder / str(cells[0]), cells[1] if len(cells) > 1 else None)
        for line, cells in records.rows(wanted)
    ]
    if not rows:
        raise NoData(f"{records.source} contains no examples.", context=None, hint="give at least one line of data.")
    return rows
