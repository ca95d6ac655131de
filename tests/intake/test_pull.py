"""Updates from folders: which are accepted, which are refused, and none twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

import edgepeft
from edgepeft.sync import pull
from edgepeft_runtime.errors import CannotWriteFile, NoSuchRemote
from tests.support.bundles import Trained


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "device"
    folder.mkdir()
    return folder


def test_updates_are_kept_under_their_hash(text: Trained, remote: Path, tmp_path: Path) -> None:
    """What is kept is the file itself, to the byte, named by its content."""
    shutil.copy(text.update, remote / "update.safetensors")
    found = edgepeft.pull([remote], tmp_path / "in", text.bundle)
    digest = hashlib.sha256(text.update.read_bytes()).hexdigest()
    assert [received.path.name for received in found.accepted] == [f"{digest}.safetensors"]
    assert found.accepted[0].path.read_bytes() == text.update.read_bytes()
    assert (found.already_there, found.refused) == ((), ())
    assert (remote / "update.safetensors").exists()


def test_a_repeated_delivery_changes_nothing(text: Trained, remote: Path, tmp_path: Path) -> None:
    """The same update again, under another name and from another remote, is recognised."""
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(text.update, remote / name)
    first = pull([remote], tmp_path / "in")
    kept = first.accepted[0].path
    before = kept.stat()
    again = pull([remote, tmp_path / "in"], tmp_path / "in")
    assert (len(first.accepted), len(first.already_there)) == (1, 1)
    assert (len(again.accepted), len(again.already_there), again.refused) == (0, 3, ())
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert os.listdir(tmp_path / "in") == [kept.name]


def test_a_copy_that_rotted_is_replaced(text: Trained, remote: Path, tmp_path: Path) -> None:
    """What is kept under a hash and no longer has it is fetched again."""
    shutil.copy(text.update, remote / "a.safetensors")
    kept = pull([remote], tmp_path / "in").accepted[0].path
    kept.write_bytes(b"rotten")
    assert len(pull([remote], tmp_path / "in").accepted) == 1
    assert kept.read_bytes() == text.update.read_bytes()


def test_what_is_no_good_is_listed_and_left(text: Trained, images: Trained, remote: Path, tmp_path: Path) -> None:
    """Damaged, foreign and oversized files, links, pipes and folders are refused by name; the good update is taken."""
    content = text.update.read_bytes()
    shutil.copy(text.update, remote / "good.safetensors")
    shutil.copy(images.update, remote / "foreign.safetensors")
    (remote / "cut.safetensors").write_bytes(content[:-1])
    (remote / "empty.safetensors").touch()
    (remote / "flipped.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shutil.copy(text.bundle / "adapter.safetensors", remote / "adapter.safetensors")
    (remote / "link.safetensors").symlink_to(text.update)
    (remote / "folder.safetensors").mkdir()
    os.mkfifo(remote / "pipe.safetensors")
    with (remote / "huge.safetensors").open("wb") as huge:
        huge.truncate(2**31)
    (remote / ".good.safetensors.partial").write_bytes(content)
    (remote / ".hidden.safetensors").write_bytes(content)
    (remote / "notes.txt").write_text("not an update")
    before = sorted(os.listdir(remote))
    found = pull([remote], tmp_path / "in", text.bundle)
    assert [received.source.name for received in found.accepted] == ["good.safetensors"]
    assert {Path(refused.source).name.partition(".")[0]: refused.code for refused in found.refused} == {
        "adapter": "no-digest",
        "cut": "wrong-digest",
        "empty": "truncated-tensor-file",
        "flipped": "wrong-digest",
        "folder": "not-a-regular-file",
        "foreign": "foreign-update",
        "huge": "too-large",
        "link": "not-a-regular-file",
        "pipe": "not-a-regular-file",
    }
    for refused in found.refused:
        assert refused.code == "foreign-update" or refused.source in refused.reason
    assert sorted(os.listdir(remote)) == before
    assert len(os.listdir(tmp_path / "in")) == 1


def test_without_a_bundle_any_whole_update_is_accepted(
    text: Trained, images: Trained, remote: Path, tmp_path: Path
) -> None:
    """A workstation may collect first and sort later; folders inside a remote are ignored."""
    shutil.copy(text.update, remote / "a.safetensors")
    shutil.copy(images.update, remote / "b.safetensors")
    (remote / "state").mkdir()
    shutil.copy(text.update, remote / "state" / "checkpoint.safetensors")
    found = pull([remote], tmp_path / "in")
    assert [received.source.name for received in found.accepted] == ["a.safetensors", "b.safetensors"]
    assert found.already_there == ()


def test_a_missing_remote_stops_before_copying(text: Trained, remote: Path, tmp_path: Path) -> None:
    """A misspelt folder is a mistake of the caller, not of a device."""
    shutil.copy(text.update, remote / "a.safetensors")
    with pytest.raises(NoSuchRemote, match="nowhere"):
        pull([remote, tmp_path / "nowhere"], tmp_path / "in")
    assert not (tmp_path / "in").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteFile, match="Cannot write"):
        pull([remote], tmp_path / "file")
