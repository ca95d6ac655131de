"""The runs of both sides, and the tolerance of aarch64 to x86-64."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import edgepeft
from edgepeft_runtime import read_tensors, write_tensors
from tests.aarch64.board import ROOT
from tests.aarch64.figures import figures

FP32 = 1e-5
"""How near losses, evaluation, outputs and update come to PyTorch's and x86-64's; measured: 1.8e-6."""

INT8 = 1e-3
"""How near the losses over an int8 base stay to those of x86-64, in the runs below.

Sums of products of integers are the same on both, but the integers are rounded from floats whose last bits differ: now
and then one falls on the other side, and training carries it on. Measured, by ``python -m tests.aarch64 --minilm
--beside .venv-oldest/bin/python``: 4.6e-5 on the small network, 5.2e-4 on MiniLM. So far, too, is onnxruntime 1.19.2
from 1.31.1 on one x86-64: 4.6e-5 and 1.8e-4.
"""


@dataclass(frozen=True)
class Case:
    """A bundle to train, and the expected results.

    Attributes:
        job: for ``figures``, without the ``update``.
        bound: how far the losses may be from each other.
        expected: losses, evaluation and outputs; ``None`` stands for what x86-64 makes of it.
    """

    name: str
    job: dict[str, Any]
    bound: float
    expected: dict[str, Any] | None = None


@dataclass(frozen=True)
class Difference:
    """The largest differences of a case: relative to a loss, or to the larger of an element and 1."""

    losses: float
    evaluation: float
    outputs: float
    update: float


def golden() -> Case:
    """The golden bundle."""
    folder = ROOT / "tests" / "golden"
    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    job = {"bundle": str(folder / "bundle"), "data": str(folder / "data.safetensors"), "lr": None}
    return Case("golden, fp32", {**job, "batches": expected["batches"]}, FP32, expected)


def small_int8(folder: Path) -> Case:
    """A BERT of two layers over an int8 base, 20 steps: all its matmuls are large enough to be quantized."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
        num_labels=4,
    )
    return _int8("small BERT, int8", BertForSequenceClassification(config), folder, classes=4, steps=20, lr=0.01)


def minilm_int8(folder: Path) -> Case:
    """The real MiniLM over an int8 base, 5 steps: minutes in an emulator."""
    from tests.support.networks import minilm

    return _int8("MiniLM, int8", minilm(), folder, classes=8, steps=5, lr=0.001)


def _int8(name: str, model: nn.Module, folder: Path, *, classes: int, steps: int, lr: float) -> Case:
    """LoRA on query and value; the label of a text is a token in it. The last texts are short."""
    import torch

    ids = torch.ones((2, 8), dtype=torch.long)
    lora = edgepeft.Lora(rank=4, target_modules=("query", "value"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = edgepeft.prepare(
            model, {"input_ids": ids, "attention_mask": ids}, method=lora, compute="int8", out=folder / "bundle"
        ).bundle
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, 8 * steps)
    tokens = draw.integers(classes, 64, (len(labels), 12))
    tokens[:, 3] = tokens[:, 7] = labels
    mask = np.ones_like(tokens)
    mask[::3, 9:] = 0
    data = folder / "data.safetensors"
    write_tensors(data, {"input_ids": tokens, "attention_mask": mask, "labels": labels})
    batches = [[start, start + 8] for start in range(0, len(labels), 8)]
    return Case(name, {"bundle": str(bundle), "data": str(data), "batches": batches, "lr": lr}, INT8)


def compare(python: Callable[..., str], cases: list[Case], folder: Path) -> list[Difference]:
    """Train the cases here, and by another Python, which is given a script, its arguments, and a folder as ``cwd``."""
    folder.mkdir(parents=True)
    jobs = [{**case.job, "update": str(folder / f"there-{number}")} for number, case in enumerate(cases)]
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    script = ROOT / "tests" / "aarch64" / "figures.py"
    printed = json.loads(python(script, folder / "jobs.json", cwd=folder))
    found = []
    for number, (case, there) in enumerate(zip(cases, printed["jobs"], strict=True)):
        here = figures({**case.job, "update": str(folder / f"here-{number}")})
        updates = [read_tensors(folder / f"{side}-{number}").tensors for side in ("here", "there")]
        found.append(_difference(here if case.expected is None else case.expected, there, updates))
    return found


def _difference(expected: dict[str, Any], found: dict[str, Any], updates: list[dict[str, Any]]) -> Difference:
    losses = np.asarray(found["losses"]) / np.asarray(expected["losses"]) - 1
    evaluation = found["evaluation"]["loss"] / expected["evaluation"]["loss"] - 1
    assert found["outputs"].keys() == expected["outputs"].keys() and updates[0].keys() == updates[1].keys()
    outputs = [_apart(expected["outputs"][name], found["outputs"][name]) for name in found["outputs"]]
    update = [_apart(updates[0][name], updates[1][name]) for name in updates[0]]
    return Difference(float(np.abs(losses).max()), abs(evaluation), max(outputs), max(update))


def _apart(one: Any, other: Any) -> float:
    one, other = np.asarray(one), np.asarray(other)
    return float((np.abs(one - other) / np.maximum(1.0, np.abs(one))).max())
