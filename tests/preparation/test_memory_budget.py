"""A budget of memory: the chosen settings stay within it when measured, at the same accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.train.memory.prediction import measured_peak, predict

SIZES = {"batch": 2048}


class Wide(nn.Module):
    """Its memory is mostly activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[part for _ in range(8) for part in (nn.Linear(768, 768), nn.GELU())])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows)


def _prepare(out: Path, budget: edgepeft.MemoryBudget | None = None) -> tuple[Bundle, list[str]]:
    torch.manual_seed(0)
    model = Wide().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    messages: list[str] = []
    made = edgepeft.prepare(
        model,
        {"rows": torch.zeros(2, 768)},
        loss="mse",
        optimizer=SGD(lr=0.1),
        out=out,
        compression=edgepeft.Compression(memory_budget=budget),
        on_progress=messages.append,
    )
    return Bundle.open(made.bundle), messages


@pytest.fixture(scope="module")
def needed(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The memory of a step without a budget."""
    bundle, _ = _prepare(tmp_path_factory.mktemp("free") / "b")
    return predict(bundle, SIZES).peak(SIZES).anonymous


def test_what_fits_is_left_as_it_is(needed: int, tmp_path: Path) -> None:
    """With enough memory the whole batch runs at once, and nothing is computed twice."""
    bundle, messages = _prepare(tmp_path / "b", edgepeft.MemoryBudget(2 * needed, SIZES))
    assert bundle.manifest.memory is not None
    assert bundle.manifest.memory.micro_batch == 2048
    assert len(bundle.manifest.programs.train) == 1
    assert any("2048 examples at a time, one graph" in line for line in messages)


def test_a_tight_budget_is_kept_when_it_is_measured(needed: int, tmp_path: Path) -> None:
    """Fewer examples at a time, or activations computed twice: the measured peak is within the budget."""
    budget = int(0.75 * needed)
    bundle, _ = _prepare(tmp_path / "b", edgepeft.MemoryBudget(budget, SIZES))
    memory = bundle.manifest.memory
    assert memory is not None and memory.micro_batch is not None
    assert memory.micro_batch < 2048 or len(bundle.manifest.programs.train) > 1
    assert measured_peak(bundle, {"batch": memory.micro_batch}).anonymous <= 1.15 * budget


def test_what_never_fits_is_said(tmp_path: Path) -> None:
    """The error names the least sufficient budget. If freezing is allowed, the lower half is frozen first."""
    with pytest.raises(EdgepeftError, match=r"No train step fits into 10\.0 MB") as refused:
        _prepare(tmp_path / "b", edgepeft.MemoryBudget(10_000_000, SIZES, may_freeze=True))
    assert "one example at a time" in str(refused.value)
    assert not (tmp_path / "b").exists()


def test_pieces_make_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    """Four micro-batches of 8 give the parameters of one batch of 32."""
    bundle, _ = _prepare(tmp_path / "b")
    draw = np.random.default_rng(0)
    batch = {name: draw.normal(size=(32, 768)).astype(np.float32) for name in ("rows", "labels")}
    pieces = [{name: array[start : start + 8] for name, array in batch.items()} for start in range(0, 32, 8)]
    found = []
    for batches in ([batch], pieces):
        with Trainer.open(bundle) as trainer:
            trainer.step(*batches)
            found.append(trainer.parameters())
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-5, atol=1e-7)
