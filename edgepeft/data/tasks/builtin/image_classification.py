"""Classes of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import ROWS, Model, Task, floats, problem
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class ImageClassification(Task):
    """A folder with a folder of images for each class, processed as the directory's image processor does."""

    name: ClassVar[str] = "image-classification"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    mappings: ClassVar[tuple[str, ...]] = ("IMAGE_CLASSIFICATION",)
    endings: ClassVar[tuple[str, ...]] = ("ForImageClassification",)
    image: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        return problem(model.config), {}

    def example(self, model: Model) -> dict[str, Array]:
        assert model.image is not None
        return {model.image.input: floats(ROWS, model.image.channels, *model.image.size)}
