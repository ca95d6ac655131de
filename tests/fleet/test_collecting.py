"""Deliveries and the host: each update is accepted once, and none is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest

from edgepeft.sync import Entry, Keys, Ledger, Workspace, accepted, collect, mirror, publish, rollback, status
from edgepeft.sync.errors import SyncError
from edgepeft.sync.keys import ACTIVE, REVOKED
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.tensorfile import read_tensors
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivering import deliver
from edgepeft_runtime.fleet.joining import join
from edgepeft_runtime.train.update import read_update
from tests.fleet.fleets import DAY, NOW, Countdown, Device, Fleet, PowerCut, code_of
from tests.support.tiny_bundle import build


@pytest.fixture
def device(fleet: Fleet) -> Device:
    """A device that has joined round 1."""
    device = fleet.device()
    fleet.publish(seed=1)
    device.join()
    return device


def pull(fleet: Fleet, now: float = NOW + 120, **more: bool) -> tuple[int, int, int, list[str]]:
    """Numbers of accepted, known and waiting updates, and the codes of the refused."""
    found = collect([fleet.remote], fleet.host, now=now, **more)
    return len(found.accepted), found.already_there, len(found.waiting), [refused.code for refused in found.refused]


def test_a_delivery_arrives_whole(fleet: Fleet, device: Device) -> None:
    """The host stores the device's file byte for byte, and the ledger records its source."""
    update = device.train(steps=3)
    delivered = device.deliver(update)
    assert pull(fleet) == (1, 0, 0, [])
    ((entry, path),) = accepted(fleet.host)
    assert path.read_bytes() == update.read_bytes()
    assert (entry.device, entry.round, entry.sequence, entry.steps, entry.staleness) == ("pi-1", 1, 1, 3, 0)
    assert entry.sha256 == delivered.delivery.sha256
    start = read_tensors(fleet.adapter(1)).tensors
    changes = [value.ravel() - start[name].ravel() for name, value in read_update(update).parameters.items()]
    assert entry.norm == pytest.approx(float(np.linalg.norm(np.concatenate(changes))), rel=1e-5)


def test_repeating_anything_changes_nothing(fleet: Fleet, device: Device) -> None:
    """Delivering again, pulling again, and the same files on another stick are no-ops."""
    update = device.train()
    assert not device.deliver(update).repeated
    files = {path: path.stat().st_mtime_ns for path in fleet.remote.rglob("*") if path.is_file()}
    assert device.deliver(update).repeated
    assert {path: path.stat().st_mtime_ns for path in fleet.remote.rglob("*") if path.is_file()} == files
    assert pull(fleet) == (1, 0, 0, [])
    before = accepted(fleet.host)
    stick = shutil.copytree(fleet.remote, fleet.root / "stick")
    found = collect([fleet.remote, stick], fleet.host, now=NOW + 500)
    assert (len(found.accepted), found.already_there) == (0, 2)
    assert accepted(fleet.host) == before


@pytest.mark.parametrize("algorithm", signatures.ALGORITHMS)
def test_devices_sign_by_either_algorithm(fleet: Fleet, algorithm: str) -> None:
    """With a shared key, or with a key of their own that the host does not have."""
    device = fleet.device("pi-2", algorithm)
    fleet.publish()
    device.join()
    device.deliver()
    assert pull(fleet) == (1, 0, 0, [])
    known = Keys(fleet.host).device("pi-2")
    assert known is not None and (known.key == device.directory.identity().key) == (algorithm == signatures.HMAC)


def test_the_sidecar_is_the_commit_mark(fleet: Fleet, device: Device) -> None:
    """A delivery that was cut short waits; the device finishes it later under the same number."""
    update = device.train()
    delivered = device.deliver(update).delivery
    sidecar = fleet.remote / delivered.folder / f"{delivered.sha256}.sig"
    sidecar.unlink()
    assert pull(fleet) == (0, 0, 1, [])
    assert device.deliver(update).delivery == delivered
    (fleet.remote / delivered.folder / f"{delivered.sha256}.safetensors").unlink()
    assert pull(fleet) == (0, 0, 1, [])
    sidecar.unlink()
    device.deliver(update)
    assert pull(fleet) == (1, 0, 0, [])


def test_the_newest_update_of_a_device_counts(fleet: Fleet, device: Device) -> None:
    """A device may train further and deliver again. In either order of arrival, the later update is accepted."""
    first, second = device.train(steps=1), device.train(steps=4)
    device.deliver(first)
    device.deliver(second)
    folder = fleet.remote / "inbox" / "r000001" / "pi-1"
    hidden = [shutil.move(path, fleet.root) for path in folder.glob(f"{signatures.sha256(first.read_bytes())}*")]
    assert pull(fleet) == (1, 0, 0, [])
    for path in hidden:
        shutil.move(path, folder)
    assert pull(fleet) == (1, 1, 0, [])
    assert [entry.steps for entry, _ in accepted(fleet.host)] == [4]


def test_late_updates_count_as_far_as_the_round_allows(fleet: Fleet, device: Device) -> None:
    """One round late is accepted and marked. Two rounds late, or after the end, is refused."""
    updates = [device.train(seed=seed) for seed in range(3)]
    device.deliver(updates[0])
    fleet.publish(seed=2, max_staleness=1)
    assert pull(fleet) == (1, 0, 0, [])
    assert [entry.staleness for entry, _ in accepted(fleet.host)] == [1]
    fleet.publish(seed=3, max_staleness=1)
    device.deliver(updates[1])
    assert pull(fleet) == (0, 1, 0, ["stale-update"])
    assert accepted(fleet.host) == []
    fleet.publish(seed=4, max_staleness=3, days=100)
    device.deliver(updates[2])
    assert pull(fleet, now=NOW + 31 * DAY) == (0, 1, 0, ["expired-round", "expired-round"])


def test_a_large_update_is_clipped_or_refused(fleet: Fleet) -> None:
    """By the norm that the round sets. A clipped update is stored unchanged, with its factor."""
    for number, action in enumerate(("clip", "refuse")):
        device = fleet.device(f"pi-{action}")
        fleet.publish(seed=1, max_update_norm=0.01, norm_action=action)
        device.join()
        device.deliver()
        expected = (1, 0, 0, []) if action == "clip" else (0, 1, 0, ["norm-too-large"])
        assert pull(fleet) == expected, number
    ((entry, _),) = accepted(fleet.host, 1)
    assert entry.scale * entry.norm == pytest.approx(0.01)


def test_refusals_are_kept_with_their_reasons_once(fleet: Fleet, device: Device) -> None:
    """Quarantine has the file, the sidecar and the reason; a second look adds nothing."""
    delivered = device.deliver().delivery
    Keys(fleet.host).set_state("pi-1", REVOKED)
    assert pull(fleet) == (0, 0, 0, ["revoked-device"])
    (folder,) = (fleet.host.quarantine / "revoked-device").iterdir()
    name = fleet.remote / delivered.folder / delivered.sha256
    assert (folder / "update").read_bytes() == name.with_suffix(".safetensors").read_bytes()
    assert (folder / "sidecar").read_bytes() == name.with_suffix(".sig").read_bytes()
    reason = json.loads((folder / "reason.json").read_text())
    assert reason["code"] == "revoked-device" and "pi-1" in reason["reason"] and delivered.sha256 in reason["source"]
    before = sorted(fleet.host.quarantine.rglob("*"))
    assert pull(fleet) == (0, 0, 0, ["revoked-device"])
    assert sorted(fleet.host.quarantine.rglob("*")) == before
    assert status(fleet.host).refused == {"revoked-device": 1}
    Keys(fleet.host).set_state("pi-1", ACTIVE)
    assert pull(fleet) == (1, 0, 0, [])


def test_quarantine_does_not_fill_the_disk(fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its size no file is kept, and not even a reason; the update stays where it is, and the code is known."""
    from edgepeft.sync.collection import quarantine

    delivered = device.deliver().delivery
    Keys(fleet.host).set_state("pi-1", REVOKED)
    for most, kept in ((100, []), (5000, ["reason.json"]), (10**6, ["reason.json", "sidecar", "update"])):
        monkeypatch.setattr(quarantine, "MAX_QUARANTINE_BYTES", most)
        assert pull(fleet) == (0, 0, 0, ["revoked-device"])
        assert sorted(path.name for path in fleet.host.quarantine.rglob("*") if path.is_file()) == kept
        shutil.rmtree(fleet.host.quarantine, ignore_errors=True)
    assert status(fleet.host).refused == {"revoked-device": 1}
    monkeypatch.setattr(quarantine, "MAX_QUARANTINE_BYTES", 100)
    assert pull(fleet, remove=True) == (0, 0, 0, ["revoked-device"])
    assert (fleet.remote / delivered.folder / f"{delivered.sha256}.safetensors").exists()


def test_what_is_kept_may_be_removed_from_the_remote(fleet: Fleet, device: Device) -> None:
    """On request, accepted and quarantined files are removed. Waiting and published files stay."""
    device.deliver()
    waiting = device.deliver(device.train(seed=9)).delivery
    (fleet.remote / waiting.folder / f"{waiting.sha256}.sig").unlink()
    published = {path.name for path in fleet.remote.rglob("*") if "inbox" not in path.parts}
    assert pull(fleet, remove=True) == (1, 0, 1, [])
    left = [path.name for path in (fleet.remote / "inbox").rglob("*") if path.is_file()]
    assert left == [f"{waiting.sha256}.safetensors"]
    assert {path.name for path in fleet.remote.rglob("*") if "inbox" not in path.parts} == published
    assert len(accepted(fleet.host)) == 1


def test_a_revoked_devices_updates_do_not_count(fleet: Fleet, device: Device) -> None:
    """Also those that were accepted before the revocation."""
    device.deliver()
    pull(fleet)
    Keys(fleet.host).set_state("pi-1", REVOKED)
    assert accepted(fleet.host) == []


@pytest.mark.parametrize("failure", [PowerCut(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_write_in_a_pull_loses_nothing(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """Power or the disk's room ends at each write in turn; pulling once more has the result of an undisturbed pull."""
    for seed in range(2):
        device.deliver(device.train(seed=seed))
    undisturbed = shutil.copytree(fleet.host.path, fleet.root / "undisturbed")
    collect([fleet.remote], undisturbed, now=NOW, remove=False)
    expected = [(entry, path.read_bytes()) for entry, path in accepted(undisturbed)]
    left = Countdown(failure)
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, left.guarded(getattr(os, name)))
    failures = 0
    for point in range(100):
        host = shutil.copytree(fleet.host.path, fleet.root / f"host-{point}")
        left.calls = point
        failures += left.ends(partial(collect, [fleet.remote], host, now=NOW))
        left.calls = None
        collect([fleet.remote], host, now=NOW)
        assert [(entry, path.read_bytes()) for entry, path in accepted(host)] == expected
        if failures <= point:
            break
    assert failures >= 8  # two renames and two flushes for each update, and flushes of their folders


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_arrival_does_not_matter(fleet: Fleet, seed: int) -> None:
    """However deliveries are spread over pulls, and repeated, the same updates count, in the same order."""
    draw = random.Random(seed)
    devices = [fleet.device(f"pi-{number}") for number in range(4)]
    fleet.publish(seed=1)
    for device in devices:
        device.join()
    waves: list[Path] = []
    for step in range(6):
        devices[step % 4].deliver(devices[step % 4].train(steps=1, seed=step))
    host = shutil.copytree(fleet.host.path, fleet.root / "at-once")
    collect([fleet.remote], host, now=NOW)
    files = sorted((fleet.remote / "inbox").rglob("*.safetensors"))
    draw.shuffle(files)
    for number, file in enumerate(files):
        stick = fleet.root / f"stick-{number}" / file.relative_to(fleet.remote).parent
        stick.mkdir(parents=True)
        for part in (file, file.with_suffix(".sig")):
            shutil.copy(part, stick)
        waves.append(fleet.root / f"stick-{number}")
        collect(draw.sample(waves, draw.randint(1, len(waves))) + waves[-1:], fleet.host, now=NOW)
    assert [(e.sha256, e.scale) for e, _ in accepted(fleet.host)] == [(e.sha256, e.scale) for e, _ in accepted(host)]
    assert len(accepted(host)) == 4


def test_a_kept_update_that_rotted_is_accepted_again(fleet: Fleet, device: Device) -> None:
    """A missing file can be accepted again, though it is in the ledger."""
    device.deliver()
    pull(fleet)
    ((_, path),) = accepted(fleet.host)
    path.unlink()
    assert pull(fleet) == (1, 0, 0, [])
    assert path.exists()


@pytest.mark.parametrize("locked", ["inbox/r000001/pi-2", "inbox/r000002"])
def test_a_folder_that_cannot_be_read_stops_no_other(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """A device that removes the permission to read its folder is reported. The others' updates are accepted."""
    (fleet.remote / locked).mkdir(parents=True)
    device.deliver()
    original = os.scandir

    def scandir(path: object) -> object:
        if path == fleet.remote / locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)
    assert pull(fleet) == (1, 0, 0, ["cannot-read-remote"])


def test_deliver_refuses_what_the_host_would_refuse(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """Damaged updates and those of no known round never leave the device."""
    update = device.train()
    (tmp_path / "cut").write_bytes(update.read_bytes()[:-1])
    assert code_of(device.deliver, tmp_path / "cut") == "wrong-digest"
    stranger = fleet.device("pi-3")
    fleet.publish(seed=5)
    stranger.join()
    assert code_of(stranger.deliver, update) == "unknown-round"
    assert not (fleet.remote / "inbox").exists()
    assert code_of(deliver, update, tmp_path / "nowhere", device.directory) == "no-such-remote"
    assert code_of(deliver, update, "s3://bucket", device.directory) == "no-such-remote"


@pytest.mark.parametrize("who", ["device", "host"])
def test_planted_links_lead_no_file_elsewhere(fleet: Fleet, device: Device, who: str) -> None:
    """Links on a USB stick that replace a folder are refused. Links that replace a file are overwritten."""
    update, precious = device.train(), fleet.root / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    names = ("inbox/r000001/pi-1", f"{signatures.sha256(update.read_bytes())}.safetensors")
    folder, name = names if who == "device" else ("r000002", "adapter.safetensors")
    publish(fleet.bundle, fleet.host, now=NOW)
    call = partial(device.deliver, update) if who == "device" else partial(mirror, fleet.host, [fleet.remote])
    (fleet.remote / folder).parent.mkdir(parents=True, exist_ok=True)
    (fleet.remote / folder).symlink_to(precious)
    assert code_of(call) == "not-a-regular-file"
    (fleet.remote / folder).unlink()
    (fleet.remote / folder).mkdir()
    for planted in (name, f".{name}.partial"):
        (fleet.remote / folder / planted).symlink_to(precious / "file")
    assert code_of(call) == ""
    assert not (fleet.remote / folder / name).is_symlink()
    assert [path.name for path in precious.iterdir()] == ["file"]
    assert (precious / "file").read_text() == "precious"


def test_sequence_numbers_never_repeat(fleet: Fleet, device: Device) -> None:
    """One number per update, whichever remote receives it. A damaged file of numbers is an error."""
    other = fleet.root / "other"
    other.mkdir()
    update = device.train(seed=1)
    assert device.deliver(update).delivery == deliver(update, other, device.directory).delivery
    assert device.deliver(device.train(seed=2)).delivery.sequence == 2
    (device.directory.path / "sequence").write_text("x")
    assert code_of(device.deliver, device.train(seed=3)) == "damaged-device-directory"


# The host's workspace


def test_a_host_without_key_round_or_the_right_bundle_is_told(fleet: Fleet, tmp_path: Path) -> None:
    """Each error names what is missing."""
    empty = Workspace(tmp_path / "empty")
    assert code_of(publish, fleet.bundle, empty) == "no-key"
    assert code_of(collect, [], fleet.host) == "no-round"
    assert code_of(collect, [tmp_path / "nowhere"], fleet.host) == "no-such-remote"
    fleet.publish()
    assert code_of(publish, build(tmp_path / "b", seed=3), fleet.host) == "foreign-bundle"
    assert code_of(rollback, fleet.host, 1) == "no-such-round"
    assert code_of(rollback, fleet.host, 7) == "no-such-round"
    assert code_of(Keys(fleet.host).create, "again") == "key-exists"
    fleet.device("pi-1")
    assert code_of(Keys(fleet.host).add, "pi-1", tmp_path / "new.json") == "device-exists"
    assert code_of(Keys(fleet.host).add, "../pi", tmp_path / "new.json") == "bad-name"
    assert code_of(Keys(fleet.host).set_state, "../host", REVOKED) == "unknown-device"


@pytest.mark.parametrize(
    "terms",
    [{"days": 0}, {"days": float("inf")}, {"max_update_norm": float("nan")}, {"steps": 0}, {"norm_action": "x"}],
)
def test_terms_that_make_no_sense_are_refused(fleet: Fleet, terms: dict[str, float]) -> None:
    """Before anything is written."""
    with pytest.raises(BadSetting, match="out of range"):
        fleet.publish(**terms)
    assert fleet.host.latest() is None


def test_rounds_are_chained_and_a_change_of_any_is_found(fleet: Fleet) -> None:
    """The head names the newest by hash, each names the one before."""
    for seed in range(3):
        fleet.publish(seed=seed)
    fleet.host.check_chain()
    path = fleet.host.published / "r000001" / "round.json"
    path.write_bytes(path.read_bytes().replace(b'"min_devices":1', b'"min_devices":0'))
    with pytest.raises(SyncError, match="r000001"):
        fleet.host.check_chain()


@pytest.mark.parametrize(
    "name", ["pub/r000001/adapter.safetensors", "pub/r000001/round.json", "keys/devices/pi-1.json"]
)
def test_damage_in_the_workspace_is_not_blamed_on_devices(fleet: Fleet, device: Device, name: str) -> None:
    """The host stops and names the file. No update is quarantined for it."""
    device.deliver()
    path = fleet.host.path / name
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    assert code_of(pull, fleet) in {"damaged-workspace", "damaged-key"}
    assert not fleet.host.quarantine.exists()
    path.write_bytes(content)
    assert pull(fleet) == (1, 0, 0, [])


def test_status_reports_rounds_and_devices(fleet: Fleet, device: Device) -> None:
    """Counts by round, state by device."""
    fleet.device("pi-2")
    device.deliver()
    pull(fleet)
    Keys(fleet.host).set_state("pi-2", REVOKED)
    found = status(fleet.host)
    assert [(number.round, number.updates, number.devices) for number in found.rounds] == [(1, 1, 1)]
    assert [(one.device, one.state, one.updates) for one in found.devices] == [
        ("pi-1", "active", 1),
        ("pi-2", "revoked", 0),
    ]
    json.dumps(found.to_dict())


def test_a_damaged_ledger_is_an_error_not_an_empty_one(fleet: Fleet, device: Device) -> None:
    """An empty ledger would accept everything twice."""
    device.deliver()
    pull(fleet)
    fleet.host.ledger.write_bytes(b"x" * 5000)
    assert code_of(pull, fleet) == "bad-ledger"


@pytest.mark.usefixtures("device")
def test_two_pulls_at_once_are_kept_apart(fleet: Fleet) -> None:
    """The second one fails and asks the user to wait."""
    with fleet.host.locked():
        assert code_of(collect, [], fleet.host) == "path-in-use"


# Remote stores


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty store in memory."""
    files = fsspec.filesystem("memory")
    files.makedirs("/fleet", exist_ok=True)
    yield "memory://fleet"
    files.rm("/fleet", recursive=True)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_whole_round_through_a_remote_store(fleet: Fleet, kind: str, memory: str, tmp_path: Path) -> None:
    """Publish, join, deliver and pull through a remote of fsspec."""
    remote = memory if kind == "memory" else f"file://{tmp_path / 'remote'}"
    device = fleet.device()
    publish(fleet.bundle, fleet.host, [remote], with_bundle=True, now=NOW)
    publish(fleet.bundle, fleet.host, [remote], with_bundle=True, another=True, now=NOW)
    local = tmp_path / "local"
    files, root = fsspec.core.url_to_fs(remote)
    files.get(root, str(local), recursive=True)
    assert join(local, device.directory, now=NOW).bundle is not None
    deliver(device.train(), local, device.directory)
    files.put(str(local / "inbox"), f"{root}/inbox", recursive=True)
    found = collect([remote], fleet.host, now=NOW)
    assert (len(found.accepted), found.refused) == (1, ())
    again = collect([remote], fleet.host, now=NOW, remove=True)
    assert (again.already_there, again.accepted) == (1, ())
    assert collect([remote], fleet.host, now=NOW).already_there == 0


def test_a_store_that_loses_files_is_detected(fleet: Fleet, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written files are read back, and ``latest.json`` is not written for a missing round."""
    from fsspec.implementations.memory import MemoryFileSystem

    original = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda self, path, value: original(self, path, value[:-1]))
    assert code_of(publish, fleet.bundle, fleet.host, [memory]) == "cannot-write-file"
    monkeypatch.undo()
    assert not fsspec.filesystem("memory").exists("/fleet/latest.json")
    assert mirror(fleet.host, [memory]).round == 1
    assert fsspec.filesystem("memory").cat("/fleet/latest.json") == (fleet.host.published / "latest.json").read_bytes()


def test_an_unknown_address_is_an_error(fleet: Fleet) -> None:
    """Without a traceback."""
    fleet.publish()
    assert code_of(collect, ["nothing://x"], fleet.host) == "no-such-remote"


def test_the_ledger_says_which_updates_count(fleet: Fleet) -> None:
    """Of each device the one with the highest number of those that came in the round, in the order of hashes."""
    with Ledger(fleet.host.ledger) as ledger:
        for digest, number, staleness, device, sequence in (
            ("c", 1, 1, "x", 1),
            ("b", 2, 0, "x", 2),
            ("e", 1, 1, "y", 6),
            ("a", 1, 1, "y", 7),
            ("f", 2, 0, "z", 1),
            ("g", 2, 1, "z", 2),
            ("d", 3, 0, "x", 3),
        ):
            ledger.add(Entry(digest, number, device, sequence, 1, 1.0, 1.0, staleness, 1, 1, None, None, 0))
        assert [entry.sha256 for entry in ledger.counting(2, 1)] == ["a", "b", "f"]
        assert [entry.sha256 for entry in ledger.counting(2, 2)] == ["b", "f"]
        assert [entry.sha256 for entry in ledger.counting(3, 1)] == ["d"]
