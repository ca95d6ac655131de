"""A device joins rounds: verified before it switches, never led backwards, on the old slot when the new one fails."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgepeft_runtime.fleet.health as health
import edgepeft_runtime.fleet.joining as joining
from edgepeft.sync import Keys, Workspace, rollback
from edgepeft_runtime.errors import FleetError
from edgepeft_runtime.files.tensorfile import read_tensors, sha256_of, write_tensors
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.device_directory import DeviceDirectory
from edgepeft_runtime.fleet.rounds import Latest, LatestSignatures
from edgepeft_runtime.fleet.transports.folder import FolderTransport
from edgepeft_runtime.fleet.transports.transport import Stream
from edgepeft_runtime.train.trainer import Trainer
from edgepeft_runtime.train.update import read_update
from tests.fleet.fleets import DAY, NOW, Countdown, Fleet, PowerCut, code_of
from tests.support.tiny_bundle import build, examples


def test_a_device_trains_from_the_rounds_adapter(fleet: Fleet) -> None:
    """The active adapter is the published file, byte for byte, and the host can identify an update's round."""
    device, made = fleet.device(), fleet.publish(seed=1)
    joined = device.join()
    assert (joined.round, joined.switched, joined.advice) == (made, True, None)
    assert joined.adapter.read_bytes() == fleet.adapter(1).read_bytes()
    assert read_update(device.train()).adapter_sha256 == made.adapter.sha256


def test_joining_again_changes_nothing(fleet: Fleet) -> None:
    """The adapter in use is never written over."""
    device = fleet.device()
    fleet.publish(seed=1)
    first = device.join()
    before = first.adapter.stat()
    assert not device.join().switched
    fleet.publish(seed=2)
    second = device.join()
    assert second.switched and second.round.round == 2
    assert second.adapter.parent != first.adapter.parent
    assert first.adapter.stat() == before
    assert [number.round for number in device.directory.known()] == [2, 1]


def test_a_remote_that_was_set_back_is_refused(fleet: Fleet) -> None:
    """An old stick, or an attacker with old signed files, cannot lead a device to an older round; it keeps its own."""
    device = fleet.device()
    fleet.publish(seed=1)
    old = shutil.copytree(fleet.remote, fleet.root / "old")
    device.join()
    fleet.publish(seed=2)
    kept = device.join()
    assert code_of(joining.join, old, device.directory, fleet.bundle, now=NOW + 60) == "round-goes-back"
    assert device.directory.current().round == kept.round
    # Nor after the newer slot was lost and the device fell back.
    kept.adapter.write_bytes(b"rotten")
    assert device.directory.current().round.round == 1
    assert code_of(joining.join, old, device.directory, fleet.bundle, now=NOW + 60) == "round-goes-back"
    assert device.join().round.round == 2


def test_a_rollback_is_a_new_round_with_the_old_adapter(fleet: Fleet) -> None:
    """The host takes a round back without any device going backwards."""
    device = fleet.device()
    for seed in (1, 2):
        fleet.publish(seed=seed)
        device.join()
    made = rollback(fleet.host, 1, [fleet.remote], now=NOW)
    joined = device.join()
    assert (joined.round.round, joined.round.restores, made.previous) == (3, 1, fleet.host.round(2).sha256)
    assert joined.adapter.read_bytes() == fleet.adapter(1).read_bytes()
    fleet.host.check_chain()


def test_only_the_hosts_own_signature_counts(fleet: Fleet) -> None:
    """Another host of the same campaign, no signature at all, and one of another head are refused."""
    device = fleet.device()
    fleet.publish(seed=1)
    other = Fleet.begin(fleet.root / "other", fleet.bundle)
    other.publish(seed=1)
    assert code_of(joining.join, other.remote, device.directory, fleet.bundle, now=NOW + 60) == "bad-signature"
    head = Latest.from_bytes((fleet.remote / "latest.json").read_bytes())
    (fleet.remote / "latest.json").write_bytes(replace(head, round=9).to_bytes())
    assert code_of(device.join) == "bad-signature"
    (fleet.remote / "latest.sig").unlink()
    assert code_of(device.join) == "no-such-file"
    assert device.directory.trusted() is None


@pytest.mark.parametrize("name", ["latest.json", "latest.sig", "r000001/round.json", "r000001/adapter.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "missing", "link"])
def test_a_damaged_remote_changes_nothing_on_the_device(fleet: Fleet, name: str, damage: str) -> None:
    """The device reports any damage of any file. Once the remote is repaired, it joins."""
    device, file = fleet.device(), fleet.remote / name
    fleet.publish(seed=1)
    whole = file.read_bytes()
    file.unlink()
    match damage:
        case "flip":
            file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        case "cut":
            file.write_bytes(whole[: len(whole) // 2])
        case "grow":
            file.write_bytes(whole + bytes(2**23))
        case "link":
            (fleet.root / "elsewhere").write_bytes(whole)
            file.symlink_to(fleet.root / "elsewhere")
    assert code_of(device.join) in {
        "bad-signature",
        "incomplete-file",
        "wrong-hash",
        "too-large",
        "no-such-file",
        "not-a-regular-file",
        "remote-unreachable",
    }
    assert device.directory.trusted() is None
    file.unlink(missing_ok=True)
    file.write_bytes(whole)
    assert device.join().switched


def test_expiry_binds_where_the_clock_can_be_right(fleet: Fleet) -> None:
    """An expired ``latest.json`` is refused. A clock before the round's creation only causes a hint."""
    device = fleet.device()
    fleet.publish(seed=1, days=2)
    assert code_of(device.join, NOW + 2 * DAY) == "expired-latest"
    assert device.directory.trusted() is None
    joined = device.join(now=0.0)
    assert joined.switched and joined.advice is not None and "clock" in joined.advice
    assert device.join(NOW + 2 * DAY - 1).advice is None


def test_a_round_of_another_bundle_or_campaign_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """Both sides are named."""
    device = fleet.device()
    fleet.publish()
    foreign = build(tmp_path / "foreign", seed=9)
    with pytest.raises(FleetError, match="base of the bundle") as caught:
        joining.join(fleet.remote, device.directory, foreign, now=NOW)
    assert caught.value.code == "foreign-round"
    workspace = Workspace(tmp_path / "host2")
    workspace.keys.mkdir(parents=True)
    shutil.copytree(fleet.host.keys, workspace.keys, dirs_exist_ok=True)
    key = workspace.keys / "host.json"
    key.write_bytes(key.read_bytes().replace(b"birds", b"trees"))
    head = replace(Latest.from_bytes((fleet.remote / "latest.json").read_bytes()), campaign="trees").to_bytes()
    (fleet.remote / "latest.json").write_bytes(head)
    signed = LatestSignatures({signatures.sha256(head): Keys(workspace).host().sign(head)})
    (fleet.remote / "latest.sig").write_bytes(signed.to_bytes())
    assert code_of(device.join) == "foreign-campaign"


def test_a_rewritten_history_is_refused(fleet: Fleet) -> None:
    """A host that replaces a round by another of its number, or builds on one that never existed, is detected."""
    device = fleet.device()
    fleet.publish(seed=1)
    device.join()
    shutil.rmtree(fleet.host.published)
    fleet.publish(seed=2)
    assert code_of(device.join) == "round-differs"
    fleet.publish(seed=3)
    assert code_of(device.join) == "round-differs"
    assert device.directory.current().adapter.read_bytes() == fleet.adapter(1).read_bytes()


def test_an_adapter_that_does_not_work_is_never_switched_to(fleet: Fleet) -> None:
    """Finite values that overflow in the model are found by a prediction, before the switch."""
    device = fleet.device()
    fleet.publish(seed=1)
    device.join()
    tensors = dict(read_tensors(fleet.adapter(1)).tensors)
    tensors["head.scale"] = np.asarray(3e38, np.float32)
    tensors["head.weight"] = np.full_like(tensors["head.weight"], 3e38)
    write_tensors(fleet.root / "adapter-7.safetensors", tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fleet, "adapter", lambda self, seed: self.root / f"adapter-{seed}.safetensors")
        fleet.publish(seed=7)
    batch = {"x": examples(4)["x"]}
    assert code_of(device.join, batch=batch) == "unhealthy-adapter"
    assert device.directory.current().round.round == 1
    fleet.publish(seed=2)
    assert device.join(batch=batch).round.round == 3


def test_a_damaged_slot_falls_back_and_is_fetched_again(fleet: Fleet) -> None:
    """A card that loses bits costs a round at most."""
    device = fleet.device()
    for seed in (1, 2):
        fleet.publish(seed=seed)
        joined = device.join()
    joined.adapter.write_bytes(joined.adapter.read_bytes()[:-1])
    assert device.directory.current().round.round == 1
    again = device.join()
    assert again.switched and again.round.round == 2
    shutil.rmtree(device.directory.path / "slot-a")
    shutil.rmtree(device.directory.path / "slot-b")
    assert code_of(device.directory.current) == "no-whole-slot"
    assert device.join().round.round == 2


def test_a_damaged_slot_is_mended_before_the_other_is_touched(fleet: Fleet) -> None:
    """If the active slot is damaged and the remote is unreachable, the older adapter remains."""
    device = fleet.device()
    for seed in (1, 2):
        fleet.publish(seed=seed)
        joined = device.join()
    joined.adapter.write_bytes(b"rotten")
    adapter = fleet.remote / "r000002" / "adapter.safetensors"
    adapter.rename(fleet.root / "away")
    assert code_of(device.join) in {"cannot-read-file", "no-such-file"}
    assert device.directory.current().round.round == 1


def test_a_device_without_a_second_slot_keeps_trying(fleet: Fleet) -> None:
    """To fall back there must be something whole to fall back to."""
    device = fleet.device()
    for seed in (1, 2):
        fleet.publish(seed=seed)
        joined = device.join()
    for slot in device.directory.path.glob("slot-*"):
        if slot != joined.adapter.parent:
            shutil.rmtree(slot)
    assert [device.directory.start().round.round for _ in range(4)] == [2, 2, 2, 2]


def test_training_that_never_makes_a_step_falls_back(fleet: Fleet) -> None:
    """Two starts that end before a good step (killed for memory, say), and the device is back on the old adapter."""
    device = fleet.device()
    for seed in (1, 2):
        fleet.publish(seed=seed)
        device.join()
    assert [device.directory.start().round.round for _ in range(3)] == [2, 2, 1]
    waiting = device.join()
    assert not waiting.switched and waiting.advice is not None and "failed" in waiting.advice
    assert waiting.round.round == 1
    fleet.publish(seed=3)
    assert device.join().round.round == 3
    for _ in range(5):  # a good step in between, and any number of starts is fine
        assert device.directory.start().round.round == 3
        assert device.directory.settle()


def test_a_fetch_resumes_where_it_was_interrupted(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of an earlier attempt are not fetched again. If they are wrong, the whole file is."""
    device, made = fleet.device(), fleet.publish(seed=1)
    slot = device.directory.spare(None)
    content = fleet.adapter(1).read_bytes()
    partial = slot / f"{made.adapter.sha256}.partial"
    reads: list[int] = []
    original = FolderTransport.open

    def opened(remote: FolderTransport, name: str, start: int = 0) -> AbstractContextManager[Stream]:
        if name.endswith("adapter.safetensors"):
            reads.append(start)
        return original(remote, name, start)

    monkeypatch.setattr(FolderTransport, "open", opened)
    partial.write_bytes(content[:100])
    assert device.join().adapter.read_bytes() == content
    assert reads == [100]
    fleet.publish(seed=2)
    made, slot = fleet.host.round(2), device.directory.spare(device.directory.trusted())
    (slot / f"{made.adapter.sha256}.partial").write_bytes(b"x" * 100)
    assert device.join().adapter.read_bytes() == fleet.adapter(2).read_bytes()
    assert reads == [100, 100, 0]


@pytest.mark.parametrize("failure", [PowerCut(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_at_any_write_leaves_a_device_that_works(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """Power or the disk's room ends at each write of a join in turn; a whole round stays in use, and joining works."""
    fleet.publish(seed=1)
    left = Countdown(failure)
    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(os, name, left.guarded(getattr(os, name)))
    devices = [fleet.device(f"pi-{number}") for number in range(25)]
    for device in devices:
        device.join()
    fleet.publish(seed=2)
    failures = 0
    for number, device in enumerate(devices):
        left.calls = number
        failures += left.ends(device.join)
        left.calls = None
        current = device.directory.current()
        assert sha256_of(current.adapter) == current.round.adapter.sha256
        assert device.join().round.round == 2
    assert 5 < failures < len(devices)  # every write was reached, and the last joins run through


def test_an_identity_is_private_and_needed(fleet: Fleet, tmp_path: Path) -> None:
    """Key files are readable by their owner alone. The error of a device without one says which file it needs."""
    device = fleet.device()
    fleet.publish()
    files = [device.directory.path / "device.json", *fleet.host.keys.rglob("*.json"), fleet.root / "pi-1.json"]
    assert len(files) == 4
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    secret = device.directory.identity().key.hex()
    assert secret not in repr(device.directory.identity()) and secret not in repr(list(Keys(fleet.host).devices()))
    assert code_of(joining.join, fleet.remote, tmp_path / "nobody", fleet.bundle) == "no-identity"


def test_only_one_process_at_a_time_changes_a_workspace(fleet: Fleet) -> None:
    """A second one fails and asks the user to wait. It does not stop the training in progress."""
    device = fleet.device()
    fleet.publish()
    device.join()
    device.directory.start()
    with device.directory.locked():
        assert code_of(DeviceDirectory(device.directory.path).start) == "path-in-use"
        assert code_of(device.join) == "path-in-use"
        assert not device.directory.settle()
    assert device.directory.settle()


def test_bundles_whose_zeros_mean_nothing_still_join(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even the bundle's own adapter fails on made-up inputs, they say nothing about the new one."""
    device = fleet.device()
    fleet.publish(seed=1)
    monkeypatch.setattr(health, "probe", lambda _: {"x": np.full((1, 4), np.inf, np.float32)})
    with Trainer.open(fleet.bundle):
        assert device.join().switched
