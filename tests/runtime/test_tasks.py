"""Several adapters over one loaded model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgepeft
from edgepeft.methods import BitFit, Lora
from edgepeft_runtime import Tasks, Trainer
from edgepeft_runtime.errors import BundleError, NoSuchTask, WrongTensors
from tests.support.networks import NETWORKS, to_numpy

BERT = NETWORKS["bert"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same base, prepared by two methods."""
    folder = tmp_path_factory.mktemp("tasks")
    methods = {"lora": Lora(rank=2, target_modules=("query",)), "bitfit": BitFit()}
    return {
        name: edgepeft.prepare(BERT.model(), BERT.example(), method=method, out=folder / name).bundle
        for name, method in methods.items()
    }


def _updates(bundle: Path, folder: Path, seeds: int) -> list[Path]:
    folder.mkdir(parents=True)
    updates = []
    for seed in range(seeds):
        with Trainer.open(bundle, seed=seed) as trainer:
            for _, batch in zip(range(seed + 1), BERT.batches(seeds), strict=False):
                trainer.step(to_numpy(*batch), lr=0.02)
            updates.append(trainer.save_update(folder / f"{seed}.safetensors"))
    return updates


def test_each_call_picks_its_adapter(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Adapters of one method and of another give the outputs of a trainer opened with them, in any order of calls."""
    loras, biases = _updates(bundles["lora"], tmp_path / "l", 2), _updates(bundles["bitfit"], tmp_path / "b", 1)
    batch = to_numpy(*next(BERT.batches(1)))
    expected = {}
    for name, bundle, adapter in (
        ("none", "lora", None),
        ("first", "lora", loras[0]),
        ("second", "lora", loras[1]),
        ("biases", "bitfit", biases[0]),
    ):
        with Trainer.open(bundles[bundle], adapter=adapter) as trainer:
            expected[name] = trainer.predict(batch)["logits"]
    with Tasks.open(bundles["lora"], {"none": None, "first": loras[0], "second": loras[1]}) as tasks:
        tasks.add("biases", bundles["bitfit"], biases[0])
        assert tasks.names == ("none", "first", "second", "biases")
        for name in ("biases", "first", "none", "second", "first", "biases"):
            assert np.array_equal(tasks.predict(name, batch)["logits"], expected[name])
    assert len({array.tobytes() for array in expected.values()}) == 4


def test_what_does_not_fit_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A task twice, an adapter of another method, an unknown task."""
    (update,) = _updates(bundles["bitfit"], tmp_path / "b", 1)
    with Tasks.open(bundles["lora"], {"a": None}) as tasks:
        with pytest.raises(BundleError, match="There is a task 'a'"):
            tasks.add("a", bundles["lora"])
        with pytest.raises(WrongTensors, match="does not contain the bundle's parameters"):
            tasks.add("b", bundles["lora"], update)
        with pytest.raises(NoSuchTask, match="There is no task 'b'"):
            tasks.predict("b", to_numpy(*next(BERT.batches(1))))
