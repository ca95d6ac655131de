"""Lock files and folders, each for one process at a time."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from edgepeft_runtime.errors import CannotWriteFile, PathInUse
from edgepeft_runtime.files.durable import hint_for, make_folder, remove_empty

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


def lock_file(path: Path) -> int | None:
    """Create the file if it is missing, and lock it until the returned handle is closed or the process ends.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be created.
    """
    return _lock(path, os.O_RDWR | os.O_CREAT)


def lock_directory(path: Path) -> int | None:
    """Lock an existing folder, as ``lock_file`` does a file; the lock follows it through a rename."""
    return None if fcntl is None else _lock(path, os.O_RDONLY)


def _lock(path: Path, flags: int) -> int | None:
    while True:
        handle = os.open(path, flags, 0o644)
        if fcntl is None:
            os.close(handle)
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if leads_to(path, handle):
                return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)  # the process that had the lock removed or renamed it meanwhile


def leads_to(path: Path, handle: int) -> bool:
    """Return whether a path still leads to the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def locked_folder(path: Path, name: str) -> Iterator[None]:
    """Create a folder if it is missing, and lock it by a file in it while the block runs.

    If the block fails and has written nothing, a folder that was missing is removed.

    Raises:
        PathInUse: another process uses it.
        CannotWriteFile: it cannot be used, or the block fails with an ``OSError``.
    """
    try:
        missing = make_folder(path)
        handle = lock_file(path / name)
    except OSError as failure:
        if not isinstance(failure, BlockingIOError):
            raise unusable(path, failure) from failure
        message = f"Another process uses {path}."
        raise PathInUse(message, context=None, hint="wait for it to end.") from failure
    try:
        yield
    except BaseException as failure:
        remove_unused(path, missing, (name,))
        if isinstance(failure, OSError):
            raise unusable(path, failure) from failure
        raise
    finally:
        if handle is not None:
            os.close(handle)


def remove_unused(path: Path, missing: Sequence[Path], names: Collection[str]) -> None:
    """Remove a folder that this process has created and locked if it contains nothing but files of these names.

    Args:
        missing: what ``make_folder`` has created.
    """
    with suppress(OSError):
        if path in missing and {entry.name for entry in os.scandir(path)} <= set(names):
            for name in names:
                (path / name).unlink(missing_ok=True)
            remove_empty(missing)


def unusable(path: Path, failure: OSError) -> CannotWriteFile:
    """Return the error of a folder that cannot be used."""
    return CannotWriteFile(f"Cannot use {path}.", context=str(failure), hint=hint_for(failure))
