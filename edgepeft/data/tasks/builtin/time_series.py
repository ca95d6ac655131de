"""The next values of time series, given as ``.npz``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import ROWS, Model, Task, floats
from edgepeft_runtime.files.tensorfile import Array

_LOSSES = {"mse": "mse", "mae": "l1"}


@dataclass(frozen=True)
class TimeSeries(Task):
    """Past values are ``[examples, context length, channels]``, labels ``[examples, prediction length, channels]``.

    Models whose configuration asks for a distribution predict its parameters, and are trained on the mean squared error
    of point predictions after ``loss`` is set to ``mse`` in the configuration.
    """

    name: ClassVar[str] = "time-series-prediction"
    endings: ClassVar[tuple[str, ...]] = ("PatchTSTForPrediction", "PatchTSMixerForPrediction")
    loss: ClassVar[str] = "mse"
    outputs: ClassVar[tuple[str, ...] | None] = ("prediction_outputs",)

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        return _LOSSES.get(str(getattr(model.config, "loss", "mse")), "mse"), {}

    def example(self, model: Model) -> dict[str, Array]:
        config = model.config
        return {"past_values": floats(ROWS, int(config.context_length), int(config.num_input_channels))}
