"""Bundles of one source, quantized in different ways, share rounds. Each device chooses its precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.sync import closing, collect
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import StateError
from edgepeft_runtime.fleet.joining import join
from edgepeft_runtime.train.trainer import Trainer
from edgepeft_runtime.train.update import read_update
from tests.fleet.fleets import NOW, Fleet

PRECISIONS = ("fp32", "int8", "int4")
DRAW = np.random.default_rng(3)
BATCH = {"input": DRAW.normal(size=(16, 64)).astype(np.float32), "labels": DRAW.integers(0, 3, 16)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in three precisions, with the same first adapter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    made = {}
    for compute in PRECISIONS:
        torch.manual_seed(5)
        method = edgepeft.Lora(rank=2, target_modules=("0",), modules_to_save=("2",))
        example = {"input": torch.from_numpy(BATCH["input"][:2])}
        out = tmp_path_factory.mktemp("precisions") / compute
        made[compute] = edgepeft.prepare(model, example, method=method, compute=compute, out=out).bundle
    return made


def trained(bundle: Path, out: Path, adapter: Path | None = None) -> Path:
    """An update of three steps."""
    with Trainer.open(bundle, adapter=adapter) as trainer:
        for _ in range(3):
            trainer.step(BATCH, lr=0.01)
        return trainer.save_update(out)


def test_an_update_of_another_precision_is_merged(bundles: dict[str, Path], tmp_path: Path) -> None:
    """An int8 device's is pulled and averaged with an fp32 device's, and either bundle becomes a model of the mean."""
    (tmp_path / "stick").mkdir()
    for compute in ("fp32", "int8"):
        trained(bundles[compute], tmp_path / "stick" / f"{compute}.safetensors")
    pulled = edgepeft.pull([tmp_path / "stick"], tmp_path / "updates", bundles["fp32"])
    assert len(pulled.accepted) == 2 and not pulled.refused
    updates = sorted((tmp_path / "updates").glob("*.safetensors"))
    mean = edgepeft.aggregate(bundles["fp32"], updates).save(tmp_path / "mean.safetensors")
    ours, theirs = (read_update(path).parameters for path in updates)
    for name, array in read_update(mean).parameters.items():
        assert np.allclose(array, (ours[name] + theirs[name]) / 2, atol=1e-6)
    for compute in ("fp32", "int8"):
        with Trainer.open(bundles[compute], adapter=mean) as trainer:
            expected = trainer.predict({"input": BATCH["input"]})["output"]
        edgepeft.merge(bundles[compute], mean, to="onnx", out=tmp_path / f"{compute}.onnx")
        session = ort.InferenceSession(tmp_path / f"{compute}.onnx", providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {"input": BATCH["input"]})
        assert np.allclose(output, expected, atol=1e-4)


def test_a_round_accepts_devices_of_any_precision(bundles: dict[str, Path], tmp_path: Path) -> None:
    """An int8 and an int4 device join, train and deliver to a host that knows the fp32 bundle."""
    fleet = Fleet.begin(tmp_path, bundles["fp32"])
    fleet.publish(seed=1)
    for compute in ("int8", "int4"):
        device = fleet.device(compute)
        assert join(fleet.remote, device.directory, bundles[compute], now=NOW + 60).switched
        update = trained(bundles[compute], tmp_path / f"{compute}.safetensors", device.directory.start().adapter)
        device.deliver(update)
    assert len(collect([fleet.remote], fleet.host, now=NOW + 120).accepted) == 2
    ended = closing(fleet.host)
    aggregate = edgepeft.aggregate(bundles["fp32"], ended.updates, adapter=ended.adapter)
    assert aggregate.report.base_sha256 == Bundle.open(bundles["int4"]).base_sha256


def test_a_run_resumes_on_its_own_graphs_alone(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint of one precision is refused by another, though the base and the adapter are the same."""
    with Trainer.open(bundles["int8"], state=tmp_path / "state") as trainer:
        trainer.fit(BATCH, max_steps=2, batch_size=8)
    with pytest.raises(StateError, match="another bundle"):
        Trainer.open(bundles["fp32"], state=tmp_path / "state")
    with Trainer.open(bundles["int8"], state=tmp_path / "state") as trainer:
        assert trainer.steps == 2
