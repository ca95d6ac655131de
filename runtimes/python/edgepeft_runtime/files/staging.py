"""Folders that outlive a crash: made beside the old one, flushed, and put in its place; the old one goes last."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgepeft_runtime.errors import NotAFolder, PathInUse
from edgepeft_runtime.files.durable import cannot_write, make_folder, sync_directory, sync_tree
from edgepeft_runtime.files.lock import leads_to, lock_directory

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replace_directory(path: str | Path) -> Iterator[Path]:
    """Give a new folder to fill; when the block ends well, it takes the place of ``path``, flushed and as a whole.

    Whoever looks finds the old folder or the new one. The old one is deleted after the new one is in its place; if that
    fails, it is put back. After an error in the block nothing has changed.

    Raises:
        NotAFolder: ``path`` exists and is no folder.
        CannotWriteFile: it cannot be written.
        PathInUse: another process is writing it.
    """
    path = Path(path)
    check_folder(path)
    with staged(path) as folder:
        yield folder
        sync_tree(folder)
        _put(folder, path)


def check_folder(path: str | Path) -> None:
    """Refuse to replace what is there and is no folder, or a link to one.

    Raises:
        NotAFolder: it is something else.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise NotAFolder(
            f"Cannot write the folder {path}.",
            context=f"it exists and is {'a link' if path.is_symlink() else 'no folder'}.",
            hint="give the path of the folder itself, or one that does not exist yet.",
        )


@contextmanager
def revised_directory(path: Path, kept: Iterable[str]) -> Iterator[Path]:
    """:func:`replace_directory` with copies of some of the old folder's files in the new one; links are followed.

    Copies and no hard links: onnx refuses weights that have two names, as they have between the two folders.
    """
    home = path.resolve()
    with replace_directory(home) as folder:
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(home / name, folder / name)
        yield folder


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give an empty folder beside ``path`` for files on their way there; it is gone afterwards, whatever happened.

    What a process that was killed has left of its own is removed first. Raises as :func:`replace_directory` does.
    """
    folder = _beside(path, "new")
    try:
        make_folder(path.parent)
        with _claimed(folder):
            recover_directory(path)
            yield folder
    except BlockingIOError as failure:
        what = f"Another process is writing {path}."
        raise PathInUse(what, context=None, hint="wait for it to end, or choose another path.") from failure
    except OSError as failure:
        raise cannot_write(path, failure) from failure


def recover_directory(path: str | Path) -> None:
    """Finish or take back what a killed :func:`replace_directory` has left beside ``path``; raises ``OSError``."""
    path = Path(path)
    old = _beside(path, "old")
    if not old.is_dir():
        return
    if os.path.lexists(path):
        shutil.rmtree(old)
    else:
        _rename(old, path)


def _beside(path: Path, what: str) -> Path:
    path = Path(os.path.abspath(path))  # "." has no name
    return path.with_name(f".{path.name}.{what}")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make a folder, empty, for this process alone; remove it afterwards where it has not been renamed."""
    folder.mkdir(exist_ok=True)
    handle = lock_directory(folder)
    try:
        _empty(folder)
        yield
    finally:
        if handle is None or leads_to(folder, handle):
            shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)


def _put(folder: Path, path: Path) -> None:
    """Put a finished folder in the place of another, or of nothing."""
    if not os.path.lexists(path):
        _rename(folder, path)
        return
    old = _beside(path, "old")
    if _exchange(folder, path):
        sync_directory(path.parent)
        os.rename(folder, old)
    else:
        _swap(folder, path, old)
    shutil.rmtree(old, ignore_errors=True)


def _swap(folder: Path, path: Path, old: Path) -> None:
    """Two renames, where the system cannot do both at once; :func:`recover_directory` knows the time between them."""
    _rename(path, old)
    try:
        _rename(folder, path)
    except OSError:
        if not os.path.lexists(path):
            os.rename(old, path)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step (renameat2(2)); whether the system can."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):
        system = ctypes.CDLL(None)
        names = os.fsencode(one), os.fsencode(other)
        return bool(system.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    return False


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_directory(target.parent)
