"""Open untrusted paths: regular files only, and without blocking."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def open_regular(path: str | Path, *, follow: bool = False) -> int:
    """Open a regular file for reading and return the handle. Pipes and devices are refused without blocking.

    Args:
        path: the file.
        follow: whether it may be a link, as a path that the user names may.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is not a regular file")
    return handle


def read_regular(path: str | Path, most: int, *, follow: bool = True) -> bytes:
    """Return the content of a regular file; raises ``OSError``, also if it has more than ``most`` bytes."""
    with os.fdopen(open_regular(path, follow=follow), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path} has more than {most} bytes")
    return content
