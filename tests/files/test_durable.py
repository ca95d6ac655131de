"""Files and folders are replaced whole or not at all, in an order that a power cut cannot undo."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from edgepeft_runtime.errors import CannotWriteFile, EdgepeftError, NotARegularFile
from edgepeft_runtime.files import staging
from edgepeft_runtime.files.durable import check_output, make_folder, write_atomically
from edgepeft_runtime.files.lock import lock_directory, lock_file
from edgepeft_runtime.files.staging import recover_directory, replace_directory, revised_directory


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that is to be replaced."""
    folder = tmp_path / "bundle"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("old")
    return folder


@pytest.fixture(params=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that can exchange two folders in one step, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(staging, "_exchange", lambda _one, _other: False)
    return str(request.param)


def replace(path: Path, text: str = "new") -> None:
    """A new folder replaces the old one."""
    with replace_directory(path) as folder:
        (folder / "file").write_text(text)


def listed(folder: Path) -> dict[str, str]:
    """Files below a folder and their content."""
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


# Files


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a device", "link to an open file"])
def test_only_regular_files_are_replaced(tmp_path: Path, kind: str) -> None:
    """A device node, a pipe, a folder or a link to one stays, and the error names its type."""
    path = tmp_path / "update"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/null")
        case "link to a device":
            path.symlink_to("/dev/full")
        case _:
            path.symlink_to("/proc/self/fd/1")
    before = os.lstat(path)
    with pytest.raises(NotARegularFile) as refused:
        write_atomically(path, [b"new"])
    assert refused.value.code == "not-a-regular-file" and refused.value.context is not None
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_standard_output_is_not_replaced() -> None:
    """Where the system keeps it as a link to whatever is open, also to a file."""
    if not os.path.lexists("/dev/stdout"):
        pytest.skip("this system has no /dev/stdout")
    with pytest.raises(NotARegularFile, match="/dev/stdout"):
        check_output("/dev/stdout")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_replaced_and_its_file_stays(tmp_path: Path, dangling: bool) -> None:
    """The target of a link is never written, so a link cannot redirect a file."""
    target, link = tmp_path / "target", tmp_path / "link"
    if not dangling:
        target.write_text("precious")
    link.symlink_to(target)
    write_atomically(link, [b"new"])
    assert link.read_text() == "new" and not link.is_symlink()
    assert target.exists() != dangling and (dangling or target.read_text() == "precious")


@pytest.mark.parametrize(("code", "word"), [(errno.ENOSPC, "full"), (errno.EROFS, "read-only"), (errno.EACCES, "perm")])
def test_errors_of_the_disk_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, word: str
) -> None:
    """The old content is still there, no other file is, and the hint belongs to the system's error."""
    path = tmp_path / "file"
    path.write_text("old")

    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(CannotWriteFile) as failure:
        write_atomically(path, [b"new"])
    assert failure.value.code == "cannot-write-file" and word in str(failure.value.hint)
    assert listed(tmp_path) == {"file": "old"}


def test_new_folders_are_flushed_into_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the top down, each after it was made."""
    flushed: list[str] = []
    original = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    make_folder(tmp_path / "a" / "b" / "c")
    assert flushed == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    make_folder(tmp_path / "a" / "b")
    assert len(flushed) == 3


# Folders


def test_a_folder_is_replaced_as_a_whole(old: Path, system: str) -> None:
    """Nothing of the old one remains, neither inside the new one nor next to it."""
    replace(old)
    assert listed(old) == {"file": "new"}, system
    assert os.listdir(old.parent) == ["bundle"]


def test_an_error_while_filling_changes_nothing(old: Path) -> None:
    """The old folder stays, and nothing else."""
    with pytest.raises(CannotWriteFile), replace_directory(old) as folder:
        (folder / "no" / "file").write_text("new")
    with pytest.raises(ZeroDivisionError), replace_directory(old):
        raise ZeroDivisionError
    assert listed(old) == {"inner/file": "old"} and os.listdir(old.parent) == ["bundle"]


@pytest.mark.parametrize("fails_at", range(3))
def test_a_rename_that_fails_puts_the_old_folder_back(
    old: Path, monkeypatch: pytest.MonkeyPatch, system: str, fails_at: int
) -> None:
    """After any fault there is a whole folder at the path, and the next attempt replaces it."""
    original, calls = os.rename, [0]

    def rename(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] == fails_at + 1:
            raise OSError(errno.EIO, "Input/output error")
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with suppress(CannotWriteFile):
        replace(old)
    assert listed(old) in ({"inner/file": "old"}, {"file": "new"}), system
    monkeypatch.undo()
    replace(old, "newer")
    assert listed(old) == {"file": "newer"} and os.listdir(old.parent) == ["bundle"]


def test_what_a_killed_replacement_left_is_recovered(old: Path) -> None:
    """Between the two renames the old folder has another name. It is restored."""
    (old.parent / ".bundle.new").mkdir()
    old.rename(old.parent / ".bundle.old")
    recover_directory(old)
    assert listed(old) == {"inner/file": "old"}
    replace(old)
    assert listed(old) == {"file": "new"} and os.listdir(old.parent) == ["bundle"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_replaces_no_file_and_no_link(tmp_path: Path, old: Path, kind: str) -> None:
    """Both are refused by name, and stay."""
    path = tmp_path / "other"
    path.symlink_to(old) if kind == "link" else path.write_text("precious")
    with pytest.raises(EdgepeftError) as refused:
        replace(path)
    assert refused.value.code == "not-a-folder"
    assert path.is_symlink() == (kind == "link") and listed(old) == {"inner/file": "old"}


def test_two_processes_do_not_write_one_folder(old: Path) -> None:
    """The second one fails with an error, and the first one's work is untouched."""
    with replace_directory(old) as folder:
        (folder / "file").write_text("new")
        with pytest.raises(EdgepeftError) as refused:
            replace(old)
        assert refused.value.code == "path-in-use"
    assert listed(old) == {"file": "new"}


def test_a_revised_folder_keeps_what_it_is_asked_to(old: Path, tmp_path: Path) -> None:
    """Through a link too. The stored file has one name, as onnx requires."""
    (tmp_path / "link").symlink_to(old)
    with revised_directory(tmp_path / "link", ["inner/file"]) as folder:
        (folder / "more").write_text("new")
    assert listed(old) == {"inner/file": "old", "more": "new"}
    assert os.stat(old / "inner" / "file").st_nlink == 1 and (tmp_path / "link").is_symlink()


# Locks


def test_a_lock_on_what_was_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for a file that its holder removes locks the new one, or finds none."""
    fcntl = pytest.importorskip("fcntl")
    path, removed = tmp_path / "lock", []
    original = fcntl.flock

    def flock(handle: int, how: int) -> None:
        original(handle, how)
        if not removed:
            removed.append(handle)
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    handle = lock_file(path)
    assert handle is not None and os.path.samestat(os.fstat(handle), os.stat(path))
    with pytest.raises(BlockingIOError):
        lock_file(path)
    os.close(handle)
    with pytest.raises(FileNotFoundError):
        lock_directory(tmp_path / "gone")
