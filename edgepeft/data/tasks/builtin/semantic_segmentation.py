"""A class for each pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgepeft.data.labels import only_label
from edgepeft.data.pictures.folder import image_spec
from edgepeft.data.pictures.masks import read_segmented
from edgepeft.data.tasks.base import ROWS, Model, Reading, Task, floats
from edgepeft.data.tasks.columns import notice_unused
from edgepeft_runtime.data.datasets import Dataset
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class SemanticSegmentation(Task):
    """A folder with ``images`` and ``masks``.

    The model's scores are resized to the image, as transformers does for its loss.

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

    def folder(self, path: Path, reading: Reading) -> Dataset:
        notice_unused(str(path), reading.columns, reading.template)
        manifest = reading.bundle.manifest
        label = only_label(manifest) if reading.labelled else None
        return read_segmented(path, image_spec(f"{path} is a folder", manifest), label)
