"""Classes of videos, given as frames in ``.npz``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import ROWS, Model, Task, floats, number, problem
from edgepeft_runtime.files.tensorfile import Array

_SIZES = ("image_size", "crop_size")


@dataclass(frozen=True)
class VideoClassification(Task):
    """Frames are ``[examples, frames, channels, height, width]``."""

    name: ClassVar[str] = "video-classification"
    auto_class: ClassVar[str] = "AutoModelForVideoClassification"
    mappings: ClassVar[tuple[str, ...]] = ("VIDEO_CLASSIFICATION",)
    endings: ClassVar[tuple[str, ...]] = ("ForVideoClassification",)
    names_classes: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        return problem(model.config), {}

    def example(self, model: Model) -> dict[str, Array]:
        config = model.config
        frames, size = number(config, "num_frames", "frames_per_clip", default=8), number(config, *_SIZES, default=224)
        name = next(name for name in ("pixel_values", "pixel_values_videos") if name in model.arguments)
        return {name: floats(ROWS, frames, number(config, "num_channels", default=3), size, size)}
