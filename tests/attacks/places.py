"""Attacks on a device by the place it reads from."""

from __future__ import annotations

import shutil
from dataclasses import replace

from edgepeft_runtime.fleet.rounds import Head
from tests.attacks.stage import Stage
from tests.attacks.table import PLACE, attack
from tests.fleet.fleets import DAY, NOW, Fleet


def _write(stage: Stage, name: str, content: bytes) -> None:
    (stage.fleet.place / name).write_bytes(content)


@attack("rollback: the place as it was a round ago, with its good signatures", PLACE, "round-goes-back")
def rolled_back(stage: Stage) -> None:
    shutil.rmtree(stage.fleet.place)
    shutil.copytree(stage.old, stage.fleet.place)


@attack("freeze: the newest round, kept as it is for months", PLACE, "expired-head", now=NOW + 90 * DAY)
def frozen(stage: Stage) -> None:
    del stage


@attack("forged: a head that names a higher round", PLACE, "bad-signature")
def forged_head(stage: Stage) -> None:
    head = Head.from_bytes((stage.fleet.place / "HEAD.json").read_bytes())
    _write(stage, "HEAD.json", replace(head, round=4).to_bytes())


@attack("forged: another host's campaign of the same name", PLACE, "bad-signature")
def another_host(stage: Stage) -> None:
    other = Fleet.begin(stage.fleet.root / "other", stage.fleet.bundle)
    for seed in range(4):
        other.publish(seed=seed)
    shutil.rmtree(stage.fleet.place)
    shutil.copytree(other.place, stage.fleet.place)


@attack("a host that rewrites a round the device knows", PLACE, "round-differs")
def rewritten(stage: Stage) -> None:
    shutil.rmtree(stage.fleet.host.published)
    for seed in range(3):
        stage.fleet.publish(seed=7 + seed)


@attack("mix and match: the new head with an old round.json", PLACE, "wrong-hash")
def mixed_round(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    shutil.copy(stage.fleet.place / "r000002" / "round.json", stage.fleet.place / "r000004" / "round.json")


@attack("mix and match: the new round with an old adapter", PLACE, "wrong-hash")
def mixed_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    name = "adapter.safetensors"
    shutil.copy(stage.fleet.place / "r000002" / name, stage.fleet.place / "r000004" / name)


@attack("an adapter without end", PLACE, "too-large")
def endless_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    with (stage.fleet.place / "r000004" / "adapter.safetensors").open("r+b") as file:
        file.truncate(2**33)


@attack("symlink: an adapter that points to the device's own key", PLACE, "not-a-regular-file")
def symlinked_adapter(stage: Stage) -> None:
    stage.fleet.publish(seed=4)
    path = stage.fleet.place / "r000004" / "adapter.safetensors"
    path.unlink()
    path.symlink_to(stage.device.home.path / "device.json")


@attack("a head without end", PLACE, "too-large")
def endless_head(stage: Stage) -> None:
    _write(stage, "HEAD.json", b"{" * 2**20)
