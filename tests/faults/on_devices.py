"""Commands of a device: ``train``, ``join``, ``deliver``."""

from __future__ import annotations

import contextlib
import json
import shutil
from functools import partial
from pathlib import Path

from edgepeft.data import load
from edgepeft.sync import Workspace, accepted, collect, publish
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet.device_directory import DeviceDirectory
from edgepeft_runtime.train.checkpoint import StateDirectory
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.trainer import Trainer
from edgepeft_runtime.train.update import read_update
from tests.faults.commands import Case, Stage, again, now, old_or_new, same
from tests.fleet.fleets import Device, Fleet
from tests.support.tiny_bundle import build as build_bundle

_PLAN = ["--epochs", "2", "--batch-size", "8", "--save-every", "2", "--threads", "1"]


def cases(bundle: Path) -> list[Case]:
    """All of them."""
    train = ["train", f"{bundle}", "--data", "data.npz", *_PLAN, "--update", "update.safetensors"]
    join = ["join", "remote", "--bundle", f"{bundle}", "--device", "devices/pi-1"]
    first = ["join", "remote", "--bundle", f"{bundle}", "--device", "devices/pi-2", "--identity", "pi-2.json"]
    fetch, alone = [part for part in join if part not in ("--bundle", f"{bundle}")], partial(_in_use, "pi-1")
    fetches = partial(Case, arguments=fetch, kept=_has_round, again=partial(_joins, fetch, "pi-1"), done=alone)
    deliver = ["deliver", "update.safetensors", "remote", "--device", "devices/pi-1"]
    new, resumed, joined = (
        [*train, "--state", "state"],
        [*train, "--state", "run"],
        [*train, "--device", "devices/pi-1"],
    )
    second = partial(_joins, first, "pi-2")
    return [
        Case("train", new, _nothing, _nothing_lost, partial(_trained, new), _has_update),
        Case("train, resumed", resumed, _begun_run, _run_goes_on, partial(_trained, resumed), _has_update),
        Case("train --device", joined, _joined, _has_round, partial(_trained, joined), _has_update),
        Case("join", join, _next_round, _has_round, partial(_joins, join, "pi-1"), partial(_in_use, "pi-1")),
        Case("join, first", first, _next_round, _nothing_lost, second, partial(_in_use, "pi-2")),
        fetches("join, with its bundle", make=_next_bundle),
        Case("deliver", deliver, _trained_update, _has_update_and_round, partial(_delivers, deliver), _arrived),
    ]


def _nothing(_fleet: Fleet) -> None:
    """A device of no fleet."""


def _nothing_lost(_stage: Stage) -> None:
    """Nothing was there."""


# train


def _begun_run(fleet: Fleet) -> None:
    """A run that was stopped after five of its eight steps, and an older update instead of the new one."""
    bundle = Bundle.open(fleet.bundle)
    data = load(fleet.root / "data.npz", bundle)
    asked = iter(range(100))
    with Trainer.open(bundle, state=fleet.root / "run", threads=1) as trainer:
        report = trainer.fit(
            data, epochs=2, save_every=2, pause=lambda: Pause("minutes", "") if next(asked) == 5 else None
        )
        assert not report.finished and trainer.steps == 5
        trainer.save_update(fleet.root / "update.safetensors")


def _steps(folder: Path, bundle: Bundle) -> int:
    with contextlib.closing(StateDirectory(folder, bundle, bundle.adapter_sha256)) as state:
        kept = state.load()
    assert kept is not None, "there is no checkpoint any more"
    return int(json.loads(kept.run)["step"])


def _run_goes_on(stage: Stage) -> None:
    """The run has a checkpoint of the step it was at, or a later one; the older update is whole."""
    bundle = Bundle.open(stage.before.parents[1] / "bundle")
    assert _steps(stage.work / "run", bundle) >= 5, "the run has lost steps"
    old_or_new(stage, "update.safetensors")


def _trained(arguments: list[str], stage: Stage) -> None:
    """It ends with the update of an undisturbed run, to the byte."""
    again(arguments)
    same(stage, "update.safetensors")


def _has_update(stage: Stage) -> None:
    same(stage, "update.safetensors")


# join


def _joined(fleet: Fleet) -> Device:
    fleet.publish(seed=1, now=now())
    device = fleet.device()
    device.join(now())
    return device


def _next_round(fleet: Fleet) -> None:
    """A device in round 1, a new one, and a second round."""
    _joined(fleet)
    fleet.device("pi-2")
    shutil.rmtree(fleet.root / "devices" / "pi-2")
    fleet.publish(seed=2, now=now())


def _next_bundle(fleet: Fleet) -> None:
    """A device in round 1 with the bundle that came with it, and a second round with another bundle."""
    fleet.publish(seed=1, now=now(), with_bundle=True)
    fleet.device().fetch(now())
    other = build_bundle(fleet.root / "other", optimizer="sgd")
    publish(other, fleet.host, [fleet.remote], with_bundle=True)


def _current(folder: Path) -> int:
    current = DeviceDirectory(folder).current()
    if current.bundle is not None:
        Bundle.open(current.bundle)
    assert sha256_of(current.adapter) == current.round.adapter.sha256
    return current.round.round


def _has_round(stage: Stage) -> None:
    """Some round is in use, and whole; the device knows who it is."""
    assert _current(stage.work / "devices" / "pi-1") in (1, 2)
    old_or_new(stage, "devices/pi-1/device.json")


def _joins(arguments: list[str], device: str, stage: Stage) -> None:
    again(arguments)
    _in_use(device, stage)


def _in_use(device: str, stage: Stage) -> None:
    assert _current(stage.work / "devices" / device) == 2, "the newest round is not in use"


# deliver


def _trained_update(fleet: Fleet) -> None:
    shutil.copy(_joined(fleet).train(), fleet.root / "update.safetensors")


def _has_update_and_round(stage: Stage) -> None:
    _has_round(stage)
    same(stage, "update.safetensors")


def _delivers(arguments: list[str], stage: Stage) -> None:
    again(arguments)
    _arrived(stage)
    sequence = int((stage.work / "devices/pi-1/sequence").read_text())
    assert sequence in (1, 2), f"{sequence} sequence numbers were used up"


def _arrived(stage: Stage) -> None:
    """The host accepts it, once."""
    host = Workspace(shutil.copytree(stage.work / "host", stage.work / "copy-of-host", dirs_exist_ok=True))
    found = collect([stage.work / "remote"], host)
    assert [len(found.accepted), found.waiting, found.refused] == [1, (), ()], f"{found}"
    ((_, path),) = accepted(host)
    assert path.read_bytes() == (stage.work / "update.safetensors").read_bytes()
    assert read_update(path).steps == 2
    shutil.rmtree(host.path)
