"""A file that one process at a time holds."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]


def lock_file(path: Path) -> int | None:
    """Make the file if it is missing, and hold it until the handle that is returned is closed, or the process ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if fcntl is None:
        os.close(handle)
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle
