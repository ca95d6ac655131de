"""Write folders that survive a crash: a new folder is filled, flushed, swapped with the old one, which goes last."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgepeft_runtime.errors import NotAFolder, PathInUse
from edgepeft_runtime.files.durable import cannot_write, made_folder, sync_directory, sync_tree
from edgepeft_runtime.files.lock import leads_to, lock_directory

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replace_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new folder to fill. If the block succeeds, the folder is flushed and replaces ``path`` as a whole.

    Readers see the old folder or the new one. The old one is deleted after it was replaced, and restored if that fails.
    After an error in the block nothing has changed.

    Raises:
        NotAFolder: ``path`` exists and is not a folder.
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
    """Refuse a path that exists and is not a folder, or is a link to one.

    Raises:
        NotAFolder: it is such a path.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise NotAFolder(
            f"Cannot write the folder {path}.",
            context=f"it exists and is {'a link' if path.is_symlink() else 'not a folder'}.",
            hint="give the path of the folder itself, or one that does not exist yet.",
        )


@contextmanager
def revised_directory(path: Path, unchanged: Iterable[str]) -> Iterator[Path]:
    """``replace_directory`` with copies of some of the old folder's files in the new one; links are followed.

    Copies and no hard links: onnx refuses weights that have two names, as they would have between the two folders.
    """
    old = path.resolve()
    with replace_directory(old) as folder:
        for name in unchanged:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old / name, folder / name)
        yield folder


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``path`` for files that will move there. It is removed afterwards in any case.

    The remains of a process that was killed are removed first, and after an error folders above that were missing.
    Raises as ``replace_directory`` does.
    """
    folder = _beside(path, "new")
    try:
        with made_folder(path.parent), _claimed(folder):
            recover_directory(path)
            yield folder
    except BlockingIOError as failure:
        message = f"Another process is writing {path}."
        raise PathInUse(message, context=None, hint="wait for it to end, or choose another path.") from failure
    except OSError as failure:
        raise cannot_write(path, failure) from failure


def recover_directory(path: str | Path) -> None:
    """Finish or undo a ``replace_directory`` of ``path`` that was killed; raises ``OSError``."""
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
    """Create an empty folder for this process alone; remove it afterwards unless it was renamed."""
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
    """Move a finished folder to ``path``, replacing an old one."""
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
    """Replace a folder by two renames; ``recover_directory`` recovers from a crash between them."""
    _rename(path, old)
    try:
        _rename(folder, path)
    except OSError:
        if not os.path.lexists(path):
            os.rename(old, path)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically (renameat2(2)); return whether the system can."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):
        system = ctypes.CDLL(None)
        names = os.fsencode(first), os.fsencode(second)
        return bool(system.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    return False


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_directory(target.parent)
