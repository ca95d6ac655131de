"""Bad devices among good ones, with real training: a trimmed mean stays accurate, a mean does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import edgepeft
from edgepeft.methods import Full
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.update import read_update, write_update

pytestmark = pytest.mark.slow

DEVICES, POISONED, ROUNDS = 20, 3, 4
Data = dict[str, Array]


def _cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 6 * 6, 10))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small CNN for digits, all of which trains."""
    out = tmp_path_factory.mktemp("digits") / "bundle"
    example = torch.zeros(2, 1, 8, 8)
    return Bundle.open(edgepeft.prepare(_cnn(), example, method=Full(), optimizer=AdamW(lr=5e-3), out=out).bundle)


@pytest.fixture(scope="module")
def data() -> tuple[list[Data], Data]:
    """Return the data of each of twenty devices, and the held-out data."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    arrays = {"input": (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)[order], "labels": labels[order]}
    shares = np.array_split(np.arange(1400), DEVICES)
    return [_rows(arrays, examples) for examples in shares], _rows(arrays, np.arange(1400, len(labels)))


def _rows(arrays: Data, rows: np.ndarray) -> Data:
    return {name: array[rows] for name, array in arrays.items()}


def _accuracy(bundle: Bundle, data: tuple[list[Data], Data], poisoned: int, robust: str | None, folder: Path) -> float:
    """Held-out accuracy after some rounds; the first devices send ten times the opposite of what they have learned."""
    folder.mkdir()
    adapter: Path | None = None
    for number in range(ROUNDS):
        updates = [
            _update(bundle, examples, adapter, number, device < poisoned, folder / f"{number}-{device}.safetensors")
            for device, examples in enumerate(data[0])
        ]
        found = edgepeft.aggregate(bundle, updates, adapter=adapter, robust=robust)
        assert len(found.report.updates) == DEVICES
        adapter = found.save(folder / f"round{number}.safetensors")
    with Trainer.open(bundle, adapter=adapter) as trainer:
        accuracy = trainer.evaluate(data[1], batch_size=100).accuracy
    assert accuracy is not None
    return accuracy


def _update(bundle: Bundle, examples: Data, adapter: Path | None, seed: int, poisoned: bool, path: Path) -> Path:
    with Trainer.open(bundle, adapter=adapter, seed=seed, threads=1) as trainer:
        start = trainer.parameters()
        trainer.fit(examples, epochs=5, batch_size=16)
        trainer.save_update(path)
        learned = trainer.parameters()
    if poisoned:
        sent = {name: start[name] - 10 * (array - start[name]) for name, array in learned.items()}
        write_update(path, replace(read_update(path), parameters=sent))
    return path


def test_a_trimmed_mean_withstands_three_of_twenty(
    bundle: Bundle, data: tuple[list[Data], Data], tmp_path: Path
) -> None:
    """The accuracy is within 2 points of the clean fleet's; that of the plain mean is far lower."""
    clean = _accuracy(bundle, data, 0, None, tmp_path / "clean")
    trimmed = _accuracy(bundle, data, POISONED, "trimmed-mean=0.2", tmp_path / "trimmed")
    median = _accuracy(bundle, data, POISONED, "median", tmp_path / "median")
    mean = _accuracy(bundle, data, POISONED, None, tmp_path / "mean")
    print(f"clean {clean:.3f}, trimmed mean {trimmed:.3f}, median {median:.3f}, mean {mean:.3f}")
    assert clean > 0.85
    assert abs(clean - trimmed) <= 0.02
    assert clean - median <= 0.04
    assert mean < clean - 0.2
