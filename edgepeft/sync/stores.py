"""Where the host publishes and collects: a folder, or a remote store through ``fsspec`` (``edgepeft[remote]``).

Nothing that lies in a store is trusted: it is listed, copied and removed here, and judged elsewhere.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from edgepeft.sync.errors import SyncError
from edgepeft_runtime.errors import EdgepeftError, FleetError
from edgepeft_runtime.fleet.places import FolderPlace, cannot_read, too_large


class Store(Protocol):
    """Folders and files by name, ``/`` between them."""

    def folders(self, name: str) -> Iterator[str]:
        """The folders in a folder, in order; none where there is no such folder."""

    def others(self, name: str) -> Iterator[str]:
        """Everything in a folder that is not a folder, in order, links and pipes too."""

    def open(self, name: str, most: int) -> Any:
        """A context with the file to read from.

        Raises:
            FleetError: it is not a regular file with one name (``not-a-regular-file``), or larger than ``most`` bytes
                (``too-large``), or cannot be read (``cannot-read-file``).
        """

    def put(self, name: str, content: bytes) -> None:
        """Write a file as a whole. What a remote store then holds is read back: it is not believed."""

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already does no harm."""


def open_store(address: str | Path) -> Store:
    """The store behind an address: a folder, ``file://…``, or any address ``fsspec`` knows (``s3://``, ``ssh://`` …).

    Raises:
        SyncError: there is no such folder, or no library for such an address is installed.
    """
    text = str(address)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        return RemoteStore(text)
    if not Path(text).is_dir():
        raise SyncError(
            "no-such-place",
            f"There is no folder {text}.",
            context=None,
            hint="give folders that devices put their updates in; mount one that lies elsewhere.",
        )
    return FolderStore(Path(text))


class FolderStore:
    """A folder of this machine, or mounted on it. Links in it are not followed, at no level."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def folders(self, name: str) -> Iterator[str]:
        """See :class:`Store`."""
        return (entry.name for entry in self._entries(name) if entry.is_dir(follow_symlinks=False))

    def others(self, name: str) -> Iterator[str]:
        """See :class:`Store`."""
        return (entry.name for entry in self._entries(name) if not entry.is_dir(follow_symlinks=False))

    @contextmanager
    def open(self, name: str, most: int) -> Iterator[IO[bytes]]:
        """See :class:`Store`. What is checked is the open file, so nobody can put another in its place meanwhile."""
        handle = self._handle(name)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise not_regular(f"{self}/{name}", "it is a folder, a pipe or a device")
            if found.st_nlink != 1:
                raise not_regular(f"{self}/{name}", f"the file has {found.st_nlink} names")
            if found.st_size > most:
                raise too_large(f"{self}/{name}", most)
            yield file

    def put(self, name: str, content: bytes) -> None:
        """See :class:`Store`."""
        FolderPlace(self._path).put(name, content)

    def remove(self, name: str) -> None:
        """See :class:`Store`."""
        with suppress(FileNotFoundError), self._parent(name) as (parent, last):
            os.unlink(last, dir_fd=parent)

    def _entries(self, name: str) -> list[os.DirEntry[str]]:
        path = self._path
        for part in name.split("/"):
            path /= part
            if path.is_symlink() or not path.is_dir():
                return []
        try:
            return sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as failure:
            raise SyncError(
                "cannot-read-place", f"Cannot read {path}.", context=str(failure), hint="check the permissions."
            ) from failure

    def _handle(self, name: str) -> int:
        """The file, opened to read; no link, and no waiting at a pipe."""
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            with self._parent(name) as (parent, last):
                return os.open(last, flags, dir_fd=parent)
        except OSError as failure:
            path = self._path / name
            if path.is_symlink():
                raise not_regular(str(path), "it is a link") from failure
            raise cannot_read(str(path), failure) from failure

    @contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int | None, str]]:
        """A file's folder, opened from folder to folder, each of them no link; and the file's name in it."""
        *folders, last = name.split("/")
        if os.open not in os.supports_dir_fd:
            yield None, str(self._path / name)
            return
        parent = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                os.close(parent)
                parent = inner
            yield parent, last
        finally:
            os.close(parent)


class RemoteStore:
    """A store that ``fsspec`` knows."""

    def __init__(self, address: str) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as failure:
            raise SyncError(
                "no-such-place",
                f"Cannot reach {address}.",
                context=str(failure),
                hint="install what fsspec needs for this address (pip install s3fs, sshfs, …).",
            ) from failure
        self._address = address.rstrip("/")

    def __str__(self) -> str:
        return self._address

    def folders(self, name: str) -> Iterator[str]:
        """See :class:`Store`."""
        return self._names(name, lambda kind: kind == "directory")

    def others(self, name: str) -> Iterator[str]:
        """See :class:`Store`."""
        return self._names(name, lambda kind: kind != "directory")

    @contextmanager
    def open(self, name: str, most: int) -> Iterator[IO[bytes]]:
        """See :class:`Store`."""
        with self._errors(name):
            found = self._files.info(self._path(name))
            if found["type"] != "file" or found.get("islink") or found.get("nlink", 1) != 1:
                raise not_regular(f"{self}/{name}", f"it is a {found['type']}, or has several names")
            if (found.get("size") or 0) > most:
                raise too_large(f"{self}/{name}", most)
            with self._files.open(self._path(name), "rb") as file:
                yield file

    def put(self, name: str, content: bytes) -> None:
        """See :class:`Store`."""
        with self._errors(name):
            self._files.makedirs(posixpath.dirname(self._path(name)), exist_ok=True)
            self._files.pipe_file(self._path(name), content)
            self._files.invalidate_cache()
            found = self._files.cat_file(self._path(name))
        if found != content:
            raise SyncError(
                "cannot-write-file",
                f"{self}/{name} is not what was written.",
                context=f"{len(content)} bytes written, {len(found)} read back",
                hint="try again; somebody else may write there too.",
            )

    def remove(self, name: str) -> None:
        """See :class:`Store`."""
        with self._errors(name):
            if self._files.exists(self._path(name)):
                self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _names(self, name: str, wanted: Any) -> Iterator[str]:
        with self._errors(name):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._path(name), detail=True)
            except FileNotFoundError:
                return
            names = [posixpath.basename(entry["name"].rstrip("/")) for entry in entries if wanted(entry["type"])]
        yield from sorted(names)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Whatever a store raises, as an error that names it; each has classes of its own."""
        try:
            yield
        except EdgepeftError:
            raise
        except FileNotFoundError as failure:
            raise cannot_read(f"{self}/{name}", failure) from failure
        except Exception as failure:
            raise SyncError(
                "place-unreachable",
                f"The store {self} failed.",
                context=f"{name}: {type(failure).__name__}: {failure}",
                hint="try again; check the address and the credentials.",
            ) from failure


def not_regular(name: str, kind: str) -> FleetError:
    """The error of what is no plain file with one name."""
    hint = "let the device write the file itself."
    return FleetError("not-a-regular-file", f"{name} is not a plain file.", context=kind, hint=hint)
