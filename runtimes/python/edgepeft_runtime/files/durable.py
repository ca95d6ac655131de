"""Write files that survive a crash: each is written under another name, flushed and renamed, then its folder flushed.

``edgepeft_runtime.files.staging`` does this for folders.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgepeft_runtime.errors import CannotWriteFile, NotARegularFile

_HINTS = {
    errno.ENOSPC: "the disk is full: make room, or choose a path on another one.",
    errno.EDQUOT: "your quota is used up: make room, or choose a path on another disk.",
    errno.EFBIG: "the file would be larger than the disk or a limit of the system (ulimit -f) allows.",
    errno.ENAMETOOLONG: "choose a shorter name.",
    errno.ELOOP: "it is a symbolic link that leads back to itself: correct the link.",
    errno.EMFILE: "this process has too many open files: raise the limit (ulimit -n).",
    errno.ENOMEM: "memory is short: end other programs.",
    errno.EROFS: "the file system is read-only: mount it for writing, or choose another path.",
    errno.EACCES: "check the permissions of the folder.",
    errno.EPERM: "check the permissions of the folder.",
    errno.ENOENT: "check that the folder exists.",
    errno.EEXIST: "there is something else where a folder should be: remove it, or choose another path.",
    errno.ENOTDIR: "there is a file where a folder should be: remove it, or choose another path.",
    errno.EIO: "the disk reports an error: check it, and choose a path on another one.",
}


def write_atomically(
    path: str | Path,
    chunks: Iterable[bytes | memoryview],
    *,
    mode: int = 0o666,
) -> None:
    """Write a file atomically: readers see the old content or the new one, also after a power cut.

    A link to a file is replaced, never written through. The file is created with its final permissions, ``mode``
    without the bits of the process's umask.

    Raises:
        NotARegularFile: ``path`` exists and is not a regular file.
        CannotWriteFile: it cannot be written. The old content remains unless flushing the folder failed.
    """
    path = Path(path)
    check_output(path)
    partial = path.with_name(f".{path.name}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with writing(path):
        try:
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, flags, mode), "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            move(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def replace_file(staged: Path, path: Path) -> None:
    """Replace a file atomically by a finished one; raises as ``write_atomically`` does."""
    check_output(path)
    with writing(path):
        sync_file(staged)
        move(staged, path)


def check_output(path: str | Path) -> None:
    """Refuse a path that exists and is not a regular file: a device, a pipe, a folder, or a link to one.

    Raises:
        NotARegularFile: it is such a path.
    """
    path = Path(path)
    kind = _special(path)
    if kind is not None:
        raise NotARegularFile(
            f"Cannot write {path}.",
            context=f"it exists and is {kind}.",
            hint="give the path of a file, or one that does not exist yet.",
        )


def _special(path: Path) -> str | None:
    """Describe what a path leads to, if it exists and is not a regular file."""
    with suppress(OSError):
        # Links of /dev and shells lead to open files of this process; replacing them would break the system.
        if path.is_symlink() and os.readlink(path).startswith(("/proc/", "/dev/")):
            return "a link to an open file or a device"
    try:
        mode = os.stat(path).st_mode
    except OSError:  # it does not exist, or the write itself will report the error
        return None
    if stat.S_ISREG(mode):
        return None
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into ``CannotWriteFile``, which names ``path``."""
    try:
        yield
    except OSError as failure:
        raise cannot_write(path, failure) from failure


def cannot_write(path: str | Path, failure: OSError) -> CannotWriteFile:
    """Return the error of a file or folder that cannot be written, from the system's error."""
    return CannotWriteFile(f"Cannot write {path}.", context=str(failure), hint=hint_for(failure))


def hint_for(failure: OSError) -> str:
    """Return the hint for an error of the file system."""
    unknown = "check that the folder exists, that it may be written to, and that the disk has room."
    return _HINTS.get(failure.errno or 0, unknown)


# Below, each raises OSError.


def move(source: Path, target: Path) -> None:
    """Rename a file over another; the new name survives a power cut."""
    os.replace(source, target)
    sync_directory(target.parent)


def remove(path: Path) -> None:
    """Remove a file if it exists; it stays removed after a power cut."""
    if os.path.lexists(path):
        path.unlink(missing_ok=True)
        sync_directory(path.parent)


def make_folder(path: Path) -> list[Path]:
    """Create a folder and its parents; they survive a power cut. Return those that were missing, outermost first."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    missing.reverse()
    for folder in missing:
        folder.mkdir(exist_ok=True)
        sync_directory(folder.parent)
    return missing


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove what ``make_folder`` has created for something that was then refused, unless there is a file in it."""
    with suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Create a folder and its parents. If the block fails, those that were missing are removed where they are empty."""
    missing = make_folder(path)
    try:
        yield
    except BaseException:
        remove_empty(missing)
        raise


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("rb" if os.name == "posix" else "rb+") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename survives a power cut; does nothing where the system cannot."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders below a folder, and the folder itself."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(root) / name)
        sync_directory(Path(root))
