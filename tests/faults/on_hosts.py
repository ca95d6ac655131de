"""Commands of a host: ``keys``, ``publish``, ``rollback``, ``pull``, ``aggregate``, and one that replaces a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

from edgepeft.sync import Keys, Ledger, Workspace, accepted, collect
from edgepeft.sync.keys import ACTIVE, REVOKED
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.tensorfile import read_tensors, sha256_of
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.rounds import Latest, LatestSignatures, Round
from tests.faults.commands import Case, Stage, again, now, old_or_new, same
from tests.fleet.fleets import Fleet

_WORKSPACE = ["--workspace", "host"]


def cases(bundle: Path) -> list[Case]:
    """All of them."""
    new = ["keys", "new", "owls", "--workspace", "owls"]
    add = ["keys", "add", "pi-9", *_WORKSPACE, "--out", "pi-9.json"]
    revoke, restore = ["keys", "revoke", "pi-1", *_WORKSPACE], ["keys", "restore", "pi-1", *_WORKSPACE]
    publish = ["publish", f"{bundle}", "remote", *_WORKSPACE, "--adapter", "adapter-2.safetensors"]
    first = ["publish", f"{bundle}", "remote", *_WORKSPACE]
    bundled = [*first, "--with-bundle"]
    rollback = ["rollback", "remote", "--to", "1", *_WORKSPACE]
    collecting, pulling = ["pull", "remote", *_WORKSPACE, "--remove"], ["pull", "stick", "--into", "updates"]
    aggregate = ["aggregate", *_WORKSPACE, "--bundle", f"{bundle}", "--out", "next.safetensors"]
    export = ["export-ort-training", "bundle"]
    folder = partial(Case, arguments=export, make=_own_bundle, kept=_bundle_is_whole, again=partial(_exports, export))
    return [
        Case("keys new", new, _devices, _keys_kept, partial(_has_key, new)),
        Case("keys add", add, _devices, _identity_kept, partial(_registers, add), _identity_fits),
        Case("keys revoke", revoke, _devices, _keys_kept, partial(_state, revoke, REVOKED)),
        Case("keys restore", restore, _blocked, _keys_kept, partial(_state, restore, ACTIVE)),
        Case("publish, first", first, _nothing_published, _keys_kept, partial(_publishes, first), _all_agree),
        Case("publish", publish, _published, partial(_latest_holds, 1), partial(_publishes, publish), _all_agree),
        Case(
            "publish --with-bundle",
            bundled,
            _published,
            partial(_latest_holds, 1),
            partial(_publishes, bundled),
            _all_agree,
        ),
        Case("rollback", rollback, _twice, partial(_latest_holds, 2), partial(_publishes, rollback), _all_agree),
        Case("pull --workspace", collecting, _delivered, _updates_kept, partial(_collects, collecting), _counted),
        Case("pull --into", pulling, _on_a_stick, _stick_kept, partial(_pulls, pulling), _pulled),
        Case("aggregate", aggregate, _collected, _round_kept, partial(_aggregates, aggregate), _aggregated),
        folder("export-ort-training", done=_exported),
        folder("export-ort-training, two renames", done=_exported, portable=True),
    ]


def _host(stage: Stage) -> Workspace:
    return Workspace(stage.work / "host")


# keys


def _devices(fleet: Fleet) -> None:
    fleet.device("pi-1")
    fleet.device("pi-2")


def _blocked(fleet: Fleet) -> None:
    _devices(fleet)
    Keys(fleet.host).set_state("pi-1", REVOKED)
    with Ledger(fleet.host.ledger) as ledger:
        ledger.block("pi-1", "two updates under one number")
        ledger.commit()


def _keys_kept(stage: Stage) -> None:
    """The host's key and those of all devices are unchanged."""
    keys, before = Keys(_host(stage)), Keys(Workspace(stage.before / "host"))
    assert keys.host() == before.host(), "the host's key is lost"
    found = {device.device: device.key for device in keys.devices()}
    missing = {device.device for device in before.devices() if found.get(device.device) != device.key}
    assert not missing, f"the keys of {missing} are lost"


def _has_key(arguments: list[str], stage: Stage) -> None:
    again(arguments, codes=(0, 1))  # 1: there is a key already
    assert Keys(Workspace(stage.work / "owls")).host().campaign == "owls"


def _identity_kept(stage: Stage) -> None:
    """Who is registered has a file with the secret."""
    _keys_kept(stage)
    if Keys(_host(stage)).device("pi-9") is not None:
        _identity_fits(stage)


def _identity_fits(stage: Stage) -> None:
    known, issued = Keys(_host(stage)).device("pi-9"), Identity.read(stage.work / "pi-9.json")
    assert known is not None and known.key == issued.key and known.has_token(issued.token), "the secret is another one"


def _registers(arguments: list[str], stage: Stage) -> None:
    again(arguments)
    _identity_fits(stage)


def _state(arguments: list[str], state: str, stage: Stage) -> None:
    again(arguments)
    known = Keys(_host(stage)).device("pi-1")
    assert known is not None and known.state == state
    with Ledger(_host(stage).ledger) as ledger:
        assert state == REVOKED or not ledger.blocked()


# publish, rollback


def _nothing_published(_fleet: Fleet) -> None:
    """A host with its key."""


def _published(fleet: Fleet) -> None:
    fleet.publish(seed=1, now=now())
    fleet.adapter(2)


def _twice(fleet: Fleet) -> None:
    _published(fleet)
    fleet.publish(seed=2, now=now())


def _latest_holds(least: int, stage: Stage) -> None:
    """The host's rounds hang together, and a device finds a whole, signed round at the remote."""
    host = _host(stage)
    host.check_chain()
    assert host.newest().round >= least, "the latest has gone back"
    assert _latest_at(stage.work / "remote", host).round >= least, "the remote has gone back"


def _latest_at(remote: Path, host: Workspace) -> Latest:
    """The latest round of a remote, checked as a device does."""
    content = (remote / rounds.LATEST_FILE).read_bytes()
    LatestSignatures.from_bytes((remote / rounds.LATEST_SIGNATURES).read_bytes()).check(
        content, Keys(host).host().public
    )
    latest = Latest.from_bytes(content)
    folder = remote / rounds.folder(latest.round)
    found = (folder / rounds.ROUND_FILE).read_bytes()
    assert signatures.sha256(found) == latest.round_sha256
    round_ = Round.from_bytes(found)
    assert sha256_of(folder / rounds.ADAPTER_FILE) == round_.adapter.sha256
    if round_.bundle is not None:
        for blob in _blobs(remote, round_.bundle.sha256):
            assert sha256_of(blob) == blob.name, "a file of the bundle is broken"
    return latest


def _blobs(remote: Path, manifest: str) -> list[Path]:
    """The files of a bundle at a remote."""
    folder = remote / rounds.BLOBS
    files = Manifest.from_json((folder / manifest).read_bytes()).files.values()
    return [folder / name for name in (manifest, *(entry.sha256 for entry in files))]


def _publishes(arguments: list[str], stage: Stage) -> None:
    again(arguments)
    _all_agree(stage)


def _all_agree(stage: Stage) -> None:
    """The remote has the host's newest round, which is new."""
    host = _host(stage)
    host.check_chain()
    before = Workspace(stage.before / "host").latest()
    assert _latest_at(stage.work / "remote", host) == host.newest()
    assert host.newest().round > (0 if before is None else before.round)


# pull


def _delivered(fleet: Fleet) -> None:
    """Three deliveries, one of them damaged, and an update that an earlier pull took."""
    fleet.publish(seed=1, now=now())
    devices = [fleet.device(f"pi-{number}") for number in (1, 2, 3)]
    for number, device in enumerate(devices):
        device.join(now())
        delivered = device.deliver(device.train(steps=1 + number)).delivery
        if number == 0:
            collect([fleet.remote], fleet.host, remove=True)
    path = fleet.remote / delivered.folder / f"{delivered.sha256}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    devices[0].deliver(devices[0].train(steps=5))


def _digests(stage: Stage) -> set[str]:
    """The hashes of all updates that were there before."""
    updates = (path for path in stage.before.rglob("*.safetensors") if {"inbox", "accepted"} & set(path.parts))
    return {_hash(path) for path in updates}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _updates_kept(stage: Stage) -> None:
    """Every update is at the remote, in the ledger with its file, or in quarantine."""
    host, there = _host(stage), {_hash(path) for path in (stage.work / "remote").rglob("*.safetensors")}
    with Ledger(host.ledger) as ledger:
        kept = {_hash(path) for path in host.accepted.rglob("*.safetensors") if ledger.find(path.stem) is not None}
    quarantined = {_hash(path) for path in host.quarantine.rglob("update")}
    missing = _digests(stage) - there - kept - quarantined
    assert not missing, f"updates are lost: {missing}"


def _collects(arguments: list[str], stage: Stage) -> None:
    said = again(arguments)
    assert ", 0 waiting" in said, said
    _counted(stage)
    assert not [path for path in (stage.work / "remote" / "inbox").rglob("*") if path.is_file()]


def _counted(stage: Stage) -> None:
    """Each update counts once."""
    _updates_kept(stage)
    found = [(entry.device, entry.sequence, path.read_bytes()) for entry, path in accepted(_host(stage))]
    expected = accepted(Workspace(stage.expected / "host"))
    assert found == [(entry.device, entry.sequence, path.read_bytes()) for entry, path in expected]
    with Ledger(_host(stage).ledger) as ledger:
        assert ledger.counts() == {1: (3, 2)}


def _on_a_stick(fleet: Fleet) -> None:
    """Three updates on a stick, one of which an earlier pull took."""
    fleet.publish(seed=1, now=now())
    device, stick = fleet.device(), fleet.root / "stick"
    device.join(now())
    stick.mkdir()
    for steps in (1, 2, 3):
        shutil.copy(device.train(steps=steps), stick)
    (fleet.root / "updates").mkdir()
    first = next(stick.iterdir())
    shutil.copy(first, fleet.root / "updates" / f"{_hash(first)}.safetensors")


def _stick_kept(stage: Stage) -> None:
    same(stage, *(str(path.relative_to(stage.before)) for path in stage.before.rglob("stick/*.safetensors")))
    same(stage, *(str(path.relative_to(stage.before)) for path in stage.before.rglob("updates/*.safetensors")))


def _pulls(arguments: list[str], stage: Stage) -> None:
    again(arguments)
    _pulled(stage)


def _pulled(stage: Stage) -> None:
    """All three, each once, and nothing else."""
    found = {path.name: _hash(path) for path in (stage.work / "updates").glob("*.safetensors")}
    assert found == {f"{digest}.safetensors": digest for digest in found.values()} and len(found) == 3


# aggregate


def _collected(fleet: Fleet) -> None:
    """Two updates that were accepted, and the adapter of an earlier round in the remote of the new one."""
    fleet.publish(seed=1, now=now())
    for number in (1, 2):
        device = fleet.device(f"pi-{number}")
        device.join(now())
        device.deliver(device.train(steps=number))
    collect([fleet.remote], fleet.host)
    shutil.copy(device.train(steps=3), fleet.root / "next.safetensors")


def _round_kept(stage: Stage) -> None:
    old_or_new(stage, "next.safetensors")
    assert len(accepted(_host(stage))) == 2


def _aggregates(arguments: list[str], stage: Stage) -> None:
    again(arguments)
    _aggregated(stage)


def _aggregated(stage: Stage) -> None:
    same(stage, "next.safetensors", "next.json")


# a folder that is replaced


def _own_bundle(fleet: Fleet) -> None:
    """A bundle that may be changed, with all settings of the official optimizer."""
    manifest = shutil.copytree(fleet.bundle, fleet.root / "bundle") / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["optimizer"] |= {"betas": [0.9, 0.999], "eps": 1e-8}
    manifest.write_text(json.dumps(content), encoding="utf-8")


def _bundle_is_whole(stage: Stage) -> None:
    """Every file matches the manifest of the old bundle or of the new one."""
    bundle = Bundle.open(stage.work / "bundle")
    assert bundle.adapter().keys() == read_tensors(stage.before / "bundle" / "adapter.safetensors").tensors.keys()


def _exports(arguments: list[str], stage: Stage) -> None:
    again(arguments)
    _exported(stage)
    left = sorted(path.name for path in stage.work.iterdir())
    assert left == sorted(path.name for path in stage.before.iterdir()), f"something is left over: {left}"


def _exported(stage: Stage) -> None:
    bundle = Bundle.open(stage.work / "bundle")
    assert any(name.startswith("ort_training/") for name in bundle.manifest.files)
