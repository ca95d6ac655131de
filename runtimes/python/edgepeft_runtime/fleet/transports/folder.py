"""A folder as a remote: a USB stick, a mount. Links are not followed at any level, since anybody may write there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepeft_runtime.errors import NoSuchRemote
from edgepeft_runtime.files.durable import make_folder, write_atomically, writing
from edgepeft_runtime.fleet.transports.transport import Stream, cannot_read, missing, not_regular

_COMMON = 0o644
"""Permissions of files that both devices and the host read."""


class FolderTransport:
    """Implements ``Transport`` by the files below a folder.

    Raises:
        FleetError: there is no such folder (``no-such-remote``).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            hint = "mount it, or plug it in."
            raise NoSuchRemote(f"There is no folder {path}.", context=None, hint=hint)

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def open(self, name: str, start: int = 0) -> Iterator[Stream]:
        """Implement the protocol. The open file is checked, so that nobody can exchange it meanwhile."""
        path = self.path / name
        try:
            with os.fdopen(self._handle(name), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise not_regular(str(path), "it is a pipe or a device")
                if status.st_nlink != 1:
                    raise not_regular(str(path), f"the file has {status.st_nlink} names")
                file.seek(start)
                yield Stream(file, start, status.st_size)
        except IsADirectoryError as failure:
            raise not_regular(str(path), "it is a folder") from failure
        except OSError as failure:
            raise cannot_read(str(path), failure) from failure

    def put(self, name: str, content: bytes) -> None:
        """Implement the protocol."""
        write_atomically(self.made(name), [content], mode=_COMMON)

    def close(self) -> None:
        """Implement the protocol; nothing stays open."""

    def made(self, name: str) -> Path:
        """Return the path of a file, whose folders are made if they are missing.

        Raises:
            FleetError: a folder is a link (``not-a-regular-file``), or cannot be made (``cannot-write-file``).
        """
        folder = self.path
        *parents, last = name.split("/")
        for parent in parents:
            folder /= parent
            if folder.is_symlink():
                raise not_regular(str(folder), "it is a link, which may lead elsewhere")
            with writing(folder):
                make_folder(folder)
        return folder / last

    def _handle(self, name: str) -> int:
        """Open a file without following links, and without waiting for the other end of a pipe."""
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            with self.parent(name) as (parent, last):
                return os.open(last, flags, dir_fd=parent)
        except FileNotFoundError:
            raise missing(name, self) from None
        except OSError:
            parts = name.split("/")
            levels = (self.path.joinpath(*parts[:count]) for count in range(1, len(parts) + 1))
            link = next((level for level in levels if level.is_symlink()), None)
            if link is None:
                raise
            raise not_regular(str(link), "it is a link, which may lead elsewhere") from None

    @contextmanager
    def parent(self, name: str) -> Iterator[tuple[int | None, str]]:
        """Open the folder of a file, level by level, none of them a link; give its handle and the file's name in it."""
        *folders, last = name.split("/")
        if os.open not in os.supports_dir_fd:
            yield None, str(self.path / name)
            return
        parent = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                os.close(parent)
                parent = inner
            yield parent, last
        finally:
            os.close(parent)
