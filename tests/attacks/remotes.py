"""Attacks on a device by the remote it reads from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgepeft.sync import publish
from edgepeft.sync.bundles import keep_bundle
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import MANIFEST
from edgepeft_runtime.bundle.specs import FileEntry
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.rounds import Latest
from tests.attacks.stage import Stage
from tests.attacks.table import REMOTE, attack
from tests.fleet.fleets import DAY, NOW, Fleet
from tests.support.tiny_bundle import build


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


# Of a bundle that travels with a round


def _blob(stage: Stage, name: str) -> Path:
    """Publish a round with its bundle, and return where the remote has a file of it."""
    entry = stage.fleet.publish(seed=4, with_bundle=True).bundle
    assert entry is not None
    files = {**Bundle.open(stage.fleet.bundle).manifest.files, MANIFEST: entry}
    return stage.fleet.remote / "blobs" / files[name].sha256


def _sign_manifest(stage: Stage, change: Callable[[dict[str, Any]], None]) -> None:
    """Let the host sign a round whose bundle has another manifest, as a thief of its key could."""
    value = json.loads(_blob(stage, MANIFEST).read_bytes())
    change(value)
    content = json.dumps(value).encode()
    digest = signatures.sha256(content)
    (stage.fleet.host.published / "blobs" / digest).write_bytes(content)
    stage.fleet.sign(bundle=FileEntry(digest, len(content)))


@attack("wrong bytes: one bit of the weights", REMOTE, "wrong-hash", fetches=True)
def flipped_weights(stage: Stage) -> None:
    path = _blob(stage, "weights.bin")
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


@attack("too many bytes: weights without end", REMOTE, "too-large", fetches=True)
def endless_weights(stage: Stage) -> None:
    with _blob(stage, "weights.bin").open("r+b") as file:
        file.truncate(2**33)


@attack("too few bytes: half of the weights", REMOTE, "incomplete-file", fetches=True)
def halved_weights(stage: Stage) -> None:
    path = _blob(stage, "weights.bin")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@attack("a foreign manifest, whole and with all its files", REMOTE, "wrong-hash", fetches=True)
def foreign_manifest(stage: Stage) -> None:
    path, other = _blob(stage, MANIFEST), Bundle.open(build(stage.fleet.root / "foreign", seed=8))
    for name, entry in other.manifest.files.items():
        shutil.copy(other.path / name, path.with_name(entry.sha256))
    shutil.copy(other.path / MANIFEST, path)


@attack("an older bundle of the campaign under the hash of the new one", REMOTE, "wrong-hash", fetches=True)
def older_bundle(stage: Stage) -> None:
    old = _blob(stage, MANIFEST).read_bytes()
    newer = build(stage.fleet.root / "newer", provenance={"note": "x" * 200})
    entry = publish(newer, stage.fleet.host, [stage.fleet.remote], with_bundle=True, now=NOW).bundle
    assert entry is not None
    (stage.fleet.remote / "blobs" / entry.sha256).write_bytes(old + b" " * (entry.bytes - len(old)))


@attack("a file that changes between two ranges of one fetch", REMOTE, "wrong-hash", fetches=True)
def changing_weights(stage: Stage) -> None:
    path, incoming = _blob(stage, "weights.bin"), stage.device.directory.bundles / "incoming"
    content = path.read_bytes()
    incoming.mkdir(parents=True)
    (incoming / path.name).write_bytes(content[:20])  # the first range, which was correct
    path.write_bytes(bytes(len(content)))


@attack("symlink: weights that point to the device's own key", REMOTE, "not-a-regular-file", fetches=True)
def symlinked_weights(stage: Stage) -> None:
    path = _blob(stage, "weights.bin")
    path.unlink()
    path.symlink_to(stage.device.directory.path / "device.json")


@attack("a manifest that leads out of the bundle, signed by the host", REMOTE, "path-escape", fetches=True)
def escaping_manifest(stage: Stage) -> None:
    def change(value: dict[str, Any]) -> None:
        value["files"]["../../device.json"] = value["files"]["weights.bin"]

    _sign_manifest(stage, change)


@attack("a manifest of 8 GB, signed by the host", REMOTE, "bad-round", fetches=True)
def endless_manifest(stage: Stage) -> None:
    stage.fleet.sign(bundle=FileEntry("ab" * 32, 2**33))


@attack("a bundle of another base, signed by the host", REMOTE, "foreign-round", fetches=True)
def foreign_base(stage: Stage) -> None:
    other = Bundle.open(build(stage.fleet.root / "foreign", seed=8))
    stage.fleet.sign(bundle=keep_bundle(stage.fleet.host.published, other))
