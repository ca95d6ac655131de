"""Classes, several labels, or numbers of texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import Model, Task, problem, text_inputs
from edgepeft_runtime.files.tensorfile import Array


@dataclass(frozen=True)
class TextClassification(Task):
    """The loss depends on the configuration: one class of several, several labels at once, or numbers."""

    name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    mappings: ClassVar[tuple[str, ...]] = ("SEQUENCE_CLASSIFICATION",)
    endings: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)
    head: ClassVar[str | None] = "LastEnd"
    text: ClassVar[bool] = True
    names_classes: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def loss_of(self, model: Model) -> tuple[str, Mapping[str, object]]:
        return problem(model.config), {}

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model)
