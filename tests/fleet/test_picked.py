"""Rounds of a method whose devices select the trained elements: delta-coded indices in both directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors

import edgepeft
from edgepeft.methods import Sift
from edgepeft.sync import closing, collect, publish
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.trainer import Trainer
from edgepeft_runtime.train.update import read_update, write_update
from tests.fleet.fleets import NOW, Device, Fleet
from tests.support.networks import NETWORKS, to_numpy

CNN = NETWORKS["cnn"]


@pytest.fixture(scope="module")
def sifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of which each device picks a tenth."""
    out = tmp_path_factory.mktemp("sifted") / "bundle"
    return edgepeft.prepare(CNN.model(), CNN.example(), method=Sift(rate=0.1), out=out).bundle


def train(device: Device, seed: int) -> Path:
    """An update of two steps from the round in use, on data of its own."""
    batches = [to_numpy(*batch) for batch in CNN.batches(2 * seed + 2)][-2:]
    with Trainer.open(device.fleet.bundle, adapter=device.directory.start().adapter) as trainer:
        for batch in batches:
            trainer.step(batch, lr=0.01)
        device.directory.settle()
        return trainer.save_update(device.directory.path / f"update-{seed}.safetensors")


def coded_in(path: Path) -> str:
    """The metadata of coded indices, read by the official library."""
    with safetensors.safe_open(path, "numpy") as file:
        return str(file.metadata().get("delta_indices", ""))


def indices_of(parameters: dict[str, Array], bundle: Bundle) -> dict[str, Array]:
    return {spec.indices: parameters[spec.indices] for spec in bundle.manifest.sparse}


def test_a_second_round_starts_from_coded_indices(sifted: Path, tmp_path: Path) -> None:
    """Two devices select and deliver, their mean is published unchanged, and an update trained from it is accepted."""
    fleet, opened = Fleet.begin(tmp_path, sifted), Bundle.open(sifted)
    devices = [fleet.device("pi-1"), fleet.device("pi-2")]
    fleet.publish()
    for seed, device in enumerate(devices):
        device.join()
        device.deliver(train(device, seed))
    assert len(collect([fleet.remote], fleet.host, now=NOW + 120).accepted) == 2
    round_one = closing(fleet.host)
    assert all(coded_in(path) for path in round_one.updates)
    mean = edgepeft.aggregate(sifted, round_one.updates, adapter=round_one.adapter).save(tmp_path / "mean.safetensors")
    second = publish(sifted, fleet.host, [fleet.remote], adapter=mean, now=NOW + 200)
    assert coded_in(mean) and second.adapter.bytes == mean.stat().st_size
    joined = devices[0].join(NOW + 300)
    assert joined.switched and joined.adapter.read_bytes() == mean.read_bytes()
    update = train(devices[0], 7)
    devices[0].deliver(update)
    assert len(collect([fleet.remote], fleet.host, now=NOW + 400).accepted) == 1
    started, ended = (indices_of(read_update(path).parameters, opened) for path in (mean, update))
    assert all(np.array_equal(ended[name], indices) for name, indices in started.items())


def test_a_round_has_room_for_plain_indices(sifted: Path, tmp_path: Path) -> None:
    """The limit is the same whether the adapter's indices are coded or not, as devices may send either."""
    fleet, opened = Fleet.begin(tmp_path, sifted), Bundle.open(sifted)
    plain = fleet.publish()
    device = fleet.device()
    device.join()
    coded = publish(sifted, fleet.host, [], adapter=train(device, 0), now=NOW)
    assert coded.limits == plain.limits
    assert plain.limits.update_bytes > sum(4 * spec.size for spec in opened.manifest.parameters)


def test_indices_beyond_their_tensor_are_refused(sifted: Path, tmp_path: Path) -> None:
    """Well coded, with its digest and signed, and one position too far."""
    fleet, opened = Fleet.begin(tmp_path, sifted), Bundle.open(sifted)
    fleet.publish()
    device = fleet.device()
    device.join()
    update = read_update(train(device, 0))
    spec = opened.manifest.sparse[0]
    indices = update.parameters[spec.indices].copy()
    indices[-1] = spec.size
    bad = replace(update, parameters={**update.parameters, spec.indices: indices})
    device.deliver(write_update(tmp_path / "bad.safetensors", bad))
    found = collect([fleet.remote], fleet.host, now=NOW + 120)
    assert [refused.code for refused in found.refused] == ["wrong-indices"]
