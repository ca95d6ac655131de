"""A class for each pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import ROWS, Model, Task, floats
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class SemanticSegmentation(Task):
    """The model's scores are resized to the image, as transformers does for its loss.

    Auxiliary heads, which some models add to the loss in pretraining, are left out.
    """

    name: ClassVar[str] = "semantic-segmentation"
    auto_class: ClassVar[str] = "AutoModelForSemanticSegmentation"
    mappings: ClassVar[tuple[str, ...]] = ("SEMANTIC_SEGMENTATION",)
    endings: ClassVar[tuple[str, ...]] = ("ForSemanticSegmentation",)
    head: ClassVar[str | None] = "Upsampled"
    image: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        ignored = getattr(model.config, "semantic_loss_ignore_index", 255)
        return "cross_entropy", {"class_axis": 1, "ignore_index": int(ignored)}

    def example(self, model: Model) -> dict[str, Array]:
        assert model.image is not None
        return {model.image.input: floats(ROWS, model.image.channels, *model.image.size)}
