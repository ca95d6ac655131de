"""Attacks on a device by the remote it reads from."""

from __future__ import annotations

import shutil
from dataclasses import replace

from edgepeft_runtime.fleet.rounds import Latest
from tests.attacks.stage import Stage
from tests.attacks.table import REMOTE, attack
from tests.fleet.fleets import DAY, NOW, Fleet


def _write(stage: Stage, name: str, content: bytes) -> None:
    (stage.fleet.remote / name).write_bytes(content)


@attack("rollback: the remote as it was a round ago, with its good signatures", REMOTE, "round-goes-back")
def rolled_back(stage: Stage) -> None:
    shutil.rmtree(stage.fleet.remote)
    shutil.copytree(stage.old, stage.fleet.remote)


@attack("freeze: the newest round, kept as it is for months", REMOTE, "expired-latest", now=NOW + 90 * DAY)
def frozen(stage: Stage) -> None:
    del stage


@attack("forged: a `latest.json` that names a higher round", REMOTE, "bad-signature")
def forged_latest(stage: Stage) -> None:
    latest = Latest.from_bytes((stage.fleet.remote / "latest.json").read_bytes())
    _write(stage, "latest.json", replace(latest, round=4).to_bytes())


@attack("forged: another host's campaign of the same name", REMOTE, "bad-signature")
def another_host(stage: Stage) -> None:
    other = Fleet.begin(stage.fleet.root / "other", stage.fleet.bundle)
    for seed in range(4):
        other.publish(seed=seed)
    shutil.rmtree(stage.fleet.remote)
    shutil.copytree(other.remote, stage.fleet.remote)


@attack("a host that rewrites a round the device knows", REMOTE, "round-differs")
def rewritten(stage: Stage) -> None:
    shutil.rmtree(stage.fleet.host.published)
    for seed in range(3):
        stage.fleet.publish(seed=7 + seed)


@attack("mix and match: the new `latest.json` with an old `round.json`", REMOTE, "wrong-hash")
def mixed_round(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    shutil.copy(stage.fleet.remote / "r000002" / "round.json", stage.fleet.remote / "r000004" / "round.json")


@attack("mix and match: the new round with an old adapter", REMOTE, "wrong-hash")
def mixed_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    name = "adapter.safetensors"
    shutil.copy(stage.fleet.remote / "r000002" / name, stage.fleet.remote / "r000004" / name)


@attack("an adapter without end", REMOTE, "too-large")
def endless_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    with (stage.fleet.remote / "r000004" / "adapter.safetensors").open("r+b") as file:
        file.truncate(2**33)


@attack("symlink: an adapter that points to the device's own key", REMOTE, "not-a-regular-file")
def symlinked_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    path = stage.fleet.remote / "r000004" / "adapter.safetensors"
    path.unlink()
    path.symlink_to(stage.device.directory.path / "device.json")


@attack("a `latest.json` without end", REMOTE, "too-large")
def endless_latest(stage: Stage) -> None:
    _write(stage, "latest.json", b"{" * 2**20)
