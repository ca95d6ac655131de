"""Which of several texts continues another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgepeft.data.tasks.base import ROWS, Model, Task, text_inputs
from edgepeft_runtime.files.tensorfile import Array

CHOICES = 4
"""Number of choices, unless class names were given."""


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Token ids are ``[examples, choices, tokens]``, given as ``.npz``."""

    name: ClassVar[str] = "multiple-choice"
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    mappings: ClassVar[tuple[str, ...]] = ("MULTIPLE_CHOICE",)
    endings: ClassVar[tuple[str, ...]] = ("ForMultipleChoice",)
    text: ClassVar[bool] = True
    half: ClassVar[bool] = True

    def example(self, model: Model) -> dict[str, Array]:
        return text_inputs(model, ROWS, model.classes or CHOICES)

    def axes(self, example: Mapping[str, Array]) -> Mapping[str, Mapping[int, str]]:
        return {name: {0: "batch", 2: "sequence"} for name in example}
