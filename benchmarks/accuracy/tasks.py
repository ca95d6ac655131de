"""The tasks, on texts and images that every machine has; see ``examples/``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import edgepeft
from benchmarks.accuracy.plan import Batch, Plan
from benchmarks.cases.minilm import model_path
from edgepeft.methods import Method

sys.path.append(str(Path(__file__).parents[2] / "examples"))  # scripts, not a package: they import one another by name
from docstrings import TOPICS, collect, split  # type: ignore[import-not-found]  # on the path above
from shifted_digits import Cnn, learn, load  # type: ignore[import-not-found]

LENGTH = 32
"""Longest text in tokens: it determines the duration of a run."""


@dataclass(frozen=True)
class Task:
    """A task: its model, data and training settings.

    Attributes:
        source: The base model for a seed, a new object with the same values each time.
        data: training and held-out examples, at most so many of each.
        columns: sides that make sense.
    """

    source: Callable[[int], edgepeft.Source]
    data: Callable[[int, int], tuple[Batch, Batch]]
    method: Method
    plan: Plan
    columns: tuple[str, ...]


def _minilm(seed: int) -> edgepeft.Source:
    return edgepeft.load_source(
        model_path(), task="text-classification", classes=list(TOPICS), max_length=LENGTH, seed=seed
    )


def _docstrings(train: int, test: int) -> tuple[Batch, Batch]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    first, second = split(collect())
    return _encoded(tokenizer, first[:train]), _encoded(tokenizer, second[:test])


def _encoded(tokenizer: object, examples: list[tuple[str, str]]) -> Batch:
    encodings = tokenizer.encode_batch([text for text, _ in examples])  # type: ignore[attr-defined]  # untyped library
    topics = list(TOPICS)
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
        "labels": np.array([topics.index(topic) for _, topic in examples]),
    }


def _cnn(seed: int) -> edgepeft.Source:
    torch.manual_seed(seed)
    model: nn.Module = Cnn()
    learn(model, load()[0])
    return edgepeft.Source(model.eval(), {"image": torch.zeros(2, 1, 8, 8)})


def _digits(train: int, test: int) -> tuple[Batch, Batch]:
    _, away, held_out = load()
    parts = zip((away, held_out), (train, test), strict=True)
    first, second = ({"image": images[:size], "labels": labels[:size]} for (images, labels), size in parts)
    return first, second


TASKS = {
    "docstrings": Task(
        _minilm,
        _docstrings,
        edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value")),
        Plan(epochs=2, rows=16, learning_rate=2e-3, warmup=20),
        ("torch", "fp32", "int8", "int4", "int8-pruned"),
    ),
    "digits": Task(
        _cnn,
        _digits,
        edgepeft.Lora(rank=8, alpha=16, target_modules=("stem.0", "block.1"), modules_to_save=("head",)),
        Plan(epochs=30, rows=32, learning_rate=1e-2, warmup=20),
        ("torch", "fp32", "int8", "int4"),  # a CNN has neither heads nor feed-forward neurons to prune
    ),
}
