"""A fine-tuning run that both sides follow: data order, schedule and step count. Needs only numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Batch: TypeAlias = dict[str, np.ndarray]

CLIP = 1.0
"""Largest L2 norm of a step's gradient."""


@dataclass(frozen=True)
class Plan:
    """Settings of a run: the learning rate rises over ``warmup`` steps and falls in a straight line to 0."""

    epochs: int
    rows: int
    learning_rate: float
    warmup: int

    def steps(self, examples: int) -> int:
        """Optimizer steps in all."""
        return self.epochs * math.ceil(examples / self.rows)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step``, counted from 1."""
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        return self.learning_rate * (steps - step + 1) / (steps - self.warmup)

    def batches(self, data: Batch, seed: int) -> Iterator[Batch]:
        """All training batches, a new order in each epoch."""
        draw = np.random.default_rng(seed)
        for _ in range(self.epochs):
            yield from cut(data, self.rows, draw.permutation(len(data["labels"])))


def cut(data: Batch, rows: int, order: np.ndarray | None = None) -> Iterator[Batch]:
    """Batches of at most ``rows`` examples; texts are as long as the longest of their batch."""
    order = np.arange(len(data["labels"])) if order is None else order
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = {name: array[chosen] for name, array in data.items()}
        if "attention_mask" in batch:
            length = int(batch["attention_mask"].sum(axis=1).max())
            batch |= {name: np.ascontiguousarray(batch[name][:, :length]) for name in ("input_ids", "attention_mask")}
        yield batch
