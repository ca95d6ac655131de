"""Masks of objects: refused, for the reason of object detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import Task


@dataclass(frozen=True)
class InstanceSegmentation(Task):
    """The losses of Mask2Former and its kin sample points of masks and solve an assignment problem for each image."""

    name: ClassVar[str] = "instance-segmentation"
    mappings: ClassVar[tuple[str, ...]] = ("UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "IMAGE_SEGMENTATION")
    endings: ClassVar[tuple[str, ...]] = ("ForUniversalSegmentation", "ForInstanceSegmentation")
    refused: ClassVar[tuple[str, str] | None] = (
        "their loss matches predicted masks to objects by an assignment that no ONNX operator computes",
        "choose a model for semantic segmentation, or prepare the model with a loss of your own (Python: "
        "prepare(model, example, loss=function)).",
    )
