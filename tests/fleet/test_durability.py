"""After a crash, or next to another process, no key, run or update is lost."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from edgepeft.sync import Keys, Ledger, collect
from edgepeft.sync.errors import SyncError
from edgepeft.sync.keys import Device as Registration
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.train.trainer import Trainer
from tests.fleet.fleets import NOW, Fleet, PowerCut, code_of
from tests.support.tiny_bundle import examples


def test_a_crash_while_adding_a_device_burns_no_name(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret is in its file before the device is registered; the same call finishes the interrupted one."""

    def cut(_keys: Keys, _device: Registration) -> None:
        raise PowerCut

    keys, out = Keys(fleet.host), tmp_path / "pi-1.json"
    with monkeypatch.context() as patch:
        patch.setattr(Keys, "_save", cut)
        with pytest.raises(PowerCut):
            keys.add("pi-1", out)
    written = Identity.read(out)
    assert keys.device("pi-1") is None
    assert keys.add("pi-1", out) == written
    known = keys.device("pi-1")
    assert known is not None and known.has_token(written.token)
    assert keys.add("pi-1", out) == written  # the crash may have come after all was done
    out.unlink()
    assert code_of(keys.add, "pi-1", out) == "device-exists"


@pytest.mark.parametrize("content", ["identity of another device", "something else", "link to nothing"])
def test_no_file_is_overwritten_by_a_new_identity(fleet: Fleet, tmp_path: Path, content: str) -> None:
    """It may be the only copy of a secret; the name stays free."""
    keys, out = Keys(fleet.host), tmp_path / "device.json"
    match content:
        case "identity of another device":
            keys.add("pi-2", out)
        case "something else":
            out.write_text("precious")
        case _:
            out.symlink_to(tmp_path / "elsewhere")
    before = None if out.is_symlink() else out.read_bytes()
    assert code_of(keys.add, "pi-1", out) == "target-exists"
    assert keys.device("pi-1") is None and (before is None or out.read_bytes() == before)


def test_joins_leave_a_run_that_is_training_alone(fleet: Fleet) -> None:
    """Two rounds later it still trains and saves; when it is over, the next join removes it."""
    device = fleet.device()
    fleet.publish(seed=1)
    device.join()
    current, run = device.directory.start(), device.directory.run(1)
    with Trainer.open(fleet.bundle, adapter=current.adapter, state=run) as trainer:
        for seed in (2, 3):
            fleet.publish(seed=seed)
            assert device.join().switched
        trainer.step(examples(8))
        trainer.save()
        trainer.resume()
        assert trainer.steps == 1
    fleet.publish(seed=4)
    device.join()
    assert not run.exists()


def test_a_sidecar_whose_update_was_accepted_does_not_wait(fleet: Fleet) -> None:
    """A pull that was killed between removing the two leaves it; the next one knows it, and removes it."""
    device = fleet.device()
    fleet.publish()
    device.join()
    delivered = device.deliver()
    collect([fleet.remote], fleet.host, now=NOW)
    update = fleet.remote / delivered.delivery.folder / f"{delivered.delivery.sha256}.safetensors"
    update.unlink()
    found = collect([fleet.remote], fleet.host, now=NOW)
    assert (found.waiting, update.with_suffix(".sig").exists()) == ((), True)
    assert collect([fleet.remote], fleet.host, now=NOW, remove=True).waiting == ()
    assert list(update.parent.iterdir()) == []


def test_an_update_that_cannot_be_removed_keeps_its_sidecar(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stay until the next pull; an update that counts does not wait, should its sidecar be gone."""
    device = fleet.device()
    fleet.publish()
    device.join()
    delivered = device.deliver()
    update = fleet.remote / delivered.delivery.folder / f"{delivered.delivery.sha256}.safetensors"
    unlink = os.unlink

    def fails(path: str, **more: int) -> None:
        if path == update.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fails)
        assert len(collect([fleet.remote], fleet.host, now=NOW, remove=True).accepted) == 1
    assert update.exists() and update.with_suffix(".sig").exists()
    update.with_suffix(".sig").unlink()
    found = collect([fleet.remote], fleet.host, now=NOW, remove=True)
    assert (found.already_there, found.waiting, update.exists()) == (1, (), False)


def test_a_sidecar_of_a_refused_update_does_not_wait(fleet: Fleet) -> None:
    """Quarantined updates are removed from their remote too. An unknown sidecar stays."""
    device = fleet.device()
    fleet.publish()
    device.join()
    delivered = device.deliver()
    update = fleet.remote / delivered.delivery.folder / f"{delivered.delivery.sha256}.safetensors"
    stranger = update.with_name(f"{'ab' * 32}.sig")
    stranger.write_bytes(update.with_suffix(".sig").read_bytes())
    update.write_bytes(update.read_bytes()[:-1])
    assert len(collect([fleet.remote], fleet.host, now=NOW).refused) == 1
    update.unlink()
    found = collect([fleet.remote], fleet.host, now=NOW, remove=True)
    assert found.waiting == (f"{fleet.remote}/{stranger.relative_to(fleet.remote)}",)
    assert list(update.parent.iterdir()) == [stranger]


@pytest.mark.parametrize("lock", ["BEGIN EXCLUSIVE", "BEGIN"])
def test_a_ledger_that_fails_is_an_error_not_a_crash(fleet: Fleet, lock: str) -> None:
    """In reading and in writing, SQLite's errors name the file, with a hint."""
    with Ledger(fleet.host.ledger, wait=0.01) as ledger, closing(sqlite3.connect(fleet.host.ledger)) as other:
        ledger.refuse("key", "code", "reason", "source", 0)
        ledger.commit()
        other.execute(lock)
        other.execute("SELECT * FROM refused").fetchone()
        asked = (ledger.counts, ledger.blocked) if lock == "BEGIN EXCLUSIVE" else (partial(blocked, ledger),)
        for call in asked:
            with pytest.raises(EdgepeftError) as failure:
                call()
            assert failure.value.code == "cannot-write-file"
            assert str(fleet.host.ledger) in failure.value.message and failure.value.hint is not None


def blocked(ledger: Ledger) -> None:
    """A device blocked for good."""
    ledger.block("pi-1", "no reason")
    ledger.commit()


@pytest.mark.parametrize("damage", [b"", b"no database" * 500])
def test_a_damaged_ledger_is_not_mistaken_for_an_empty_disk(fleet: Fleet, damage: bytes) -> None:
    """An empty file is a new ledger; any other is to be restored."""
    fleet.host.ledger.write_bytes(damage)
    if not damage:
        with Ledger(fleet.host.ledger) as ledger:
            assert ledger.counts() == {}
        return
    with pytest.raises(SyncError) as failure:
        Ledger(fleet.host.ledger)
    assert failure.value.code == "bad-ledger"


def test_a_folder_in_place_of_an_update_is_refused(fleet: Fleet) -> None:
    """A device that finds a file at its update's path reports it, and has used only a sequence number."""
    device = fleet.device()
    fleet.publish()
    device.join()
    update = device.train()
    delivered = device.deliver(update).delivery
    path = fleet.remote / delivered.folder / f"{delivered.sha256}.safetensors"
    path.with_suffix(".sig").unlink()
    path.unlink()
    path.mkdir()
    assert code_of(device.deliver, update) == "not-a-regular-file"
    path.rmdir()
    assert device.deliver(update).delivery == delivered
