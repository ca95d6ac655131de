"""The parts of a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from benchmarks.sides import SIDES
from edgepeft import Source
from edgepeft.methods import Method

Batch: TypeAlias = Mapping[str, np.ndarray]

MAIN = (
    "torch-eager",
    "torch-compile",
    "ort-inference-fp32",
    "ort-training",
    "onnxsim",
    "edgepeft-fp32",
    "edgepeft-int8",
)
"""Sides of the cases that are not measured with all."""


@dataclass(frozen=True)
class Case:
    """A model to fine-tune and the batch that is timed.

    Attributes:
        summary: model, method and batch in one line.
        source: The base model, a new object with the same values each time, its export settings, and its loss.
        method: The method that is trained.
        batch: inputs and ``labels``, by name.
        skipped: sides that make no sense here, each with the reason.
        sides: The sides that are measured; by default all.
    """

    summary: str
    source: Callable[[], Source]
    method: Method
    batch: Callable[[], Batch]
    skipped: Mapping[str, str] = field(default_factory=dict)
    sides: Sequence[str] = tuple(SIDES)


def text_batch(rows: int, length: int, vocabulary: tuple[int, int], classes: int | None) -> Batch:
    """Random token ids without padding; labels are classes, or the ids themselves for a causal model."""
    draw = np.random.default_rng(0)
    ids = draw.integers(*vocabulary, (rows, length))
    labels = ids if classes is None else draw.integers(0, classes, rows)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}
