"""Boxes around objects: refused, because the loss matches boxes to objects outside of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import Task


@dataclass(frozen=True)
class ObjectDetection(Task):
    """DETR's loss solves an assignment problem for each image, which ONNX has no operator for."""

    name: ClassVar[str] = "object-detection"
    auto_class: ClassVar[str] = "AutoModelForObjectDetection"
    mappings: ClassVar[tuple[str, ...]] = ("OBJECT_DETECTION", "ZERO_SHOT_OBJECT_DETECTION")
    endings: ClassVar[tuple[str, ...]] = ("ForObjectDetection", "ForDetection")
    refused: ClassVar[tuple[str, str] | None] = (
        "their loss matches predicted boxes to objects by an assignment that no ONNX operator computes",
        "match them beforehand, give the targets of each query as labels, and prepare the model with a loss of your "
        "own on logits and pred_boxes (Python: prepare(model, example, loss=function)).",
    )
