"""Inputs of models of sound: samples, or features over time."""

from __future__ import annotations

from collections.abc import Mapping

from edgepeft.data.tasks.base import ROWS, Model, floats, number
from edgepeft_runtime.files.tensorfile import Array

SAMPLES = 4000
"""Samples of the example: a quarter of a second."""

FRAMES = 40
"""Frames of features of the example."""


def audio_inputs(model: Model) -> dict[str, Array]:
    """Return a batch of samples ``input_values`` ``[examples, samples]``, or of features, as the model takes them."""
    config = model.config
    if "input_values" in model.arguments:
        length, bins = getattr(config, "max_length", None), getattr(config, "num_mel_bins", None)
        if length and bins:  # a spectrogram transformer, which has a position for each patch
            return {"input_values": floats(ROWS, int(length), int(bins)) - 0.5}
        return {"input_values": floats(ROWS, SAMPLES) - 0.5}
    bins = number(config, "num_mel_bins", "feature_projection_input_dim", default=80)
    positions = getattr(config, "max_source_positions", None)
    if "decoder_input_ids" not in model.arguments and positions is None:
        return {"input_features": floats(ROWS, FRAMES, bins) - 0.5}
    if getattr(config, "input_feat_per_channel", None):  # Speech2Text: frames first
        return {"input_features": floats(ROWS, FRAMES, int(config.input_feat_per_channel)) - 0.5}
    return {"input_features": floats(ROWS, bins, 2 * int(positions or FRAMES)) - 0.5}


def audio_axes(example: Mapping[str, Array]) -> dict[str, dict[int, str]]:
    """Return the sizes that may change: examples, and the length of samples."""
    return {name: {0: "batch", 1: "samples"} if array.ndim == 2 else {0: "batch"} for name, array in example.items()}
