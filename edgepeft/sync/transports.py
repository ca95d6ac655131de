"""The host's transports: besides reading and writing, they list, remove and upload files.

A remote is a folder, or an address that ``fsspec`` supports (``edgepeft[remote]``). Its content is untrusted: files are
listed, copied and removed here, and verified elsewhere.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from edgepeft_runtime.errors import CannotReadRemote, CannotWriteFile, EdgepeftError, NoSuchRemote, RemoteUnreachable
from edgepeft_runtime.files.durable import replace_file, writing
from edgepeft_runtime.fleet.transports.folder import FolderTransport
from edgepeft_runtime.fleet.transports.transport import Stream, Transport, missing, not_regular


class HostTransport(Transport, Protocol):
    """A transport to a remote that the host publishes to and collects from."""

    def folders(self, name: str) -> Iterator[str]:
        """The folders in a folder, in order; none if there is no such folder."""

    def others(self, name: str) -> Iterator[str]:
        """Everything in a folder that is not a folder, links and pipes included, in order."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def size(self, name: str) -> int | None:
        """The bytes of a file, ``None`` if there is none."""

    def upload(self, name: str, path: Path) -> None:
        """Write a large file as a whole, and replace an older one."""


def open_remote(remote: str | Path) -> HostTransport:
    """Return the transport to a remote: a folder, or an address that ``fsspec`` supports (``s3://``, ``ssh://``).

    Raises:
        EdgepeftError: There is no such folder, or no library for such an address is installed (``no-such-remote``).
    """
    text = str(remote).removeprefix("file://")
    return FsspecTransport(text) if "://" in text else HostFolder(text)


class HostFolder(FolderTransport):
    """A folder of this machine, or mounted on it."""

    def folders(self, name: str) -> Iterator[str]:
        """Implement the protocol."""
        return (entry.name for entry in self._entries(name) if entry.is_dir(follow_symlinks=False))

    def others(self, name: str) -> Iterator[str]:
        """Implement the protocol."""
        return (entry.name for entry in self._entries(name) if not entry.is_dir(follow_symlinks=False))

    def remove(self, name: str) -> None:
        """Implement the protocol."""
        with suppress(FileNotFoundError), self.parent(name) as (parent, last):
            os.unlink(last, dir_fd=parent)

    def size(self, name: str) -> int | None:
        """Implement the protocol."""
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def upload(self, name: str, path: Path) -> None:
        """Implement the protocol."""
        target = self.made(name)
        staged = target.with_name(f".{target.name}.partial")
        with writing(target):
            shutil.copyfile(path, staged)
        replace_file(staged, target)

    def _entries(self, name: str) -> list[os.DirEntry[str]]:
        path = self.path
        for part in filter(None, name.split("/")):
            path /= part
            if path.is_symlink() or not path.is_dir():
                return []
        try:
            return sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as failure:
            raise CannotReadRemote(
                f"Cannot read {path}.", context=str(failure), hint="check the permissions."
            ) from failure


class FsspecTransport:
    """A remote at an address that ``fsspec`` supports."""

    def __init__(self, address: str) -> None:
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as failure:
            raise NoSuchRemote(
                f"Cannot reach {address}.",
                context=str(failure),
                hint="install what fsspec needs for this address (pip install s3fs, sshfs, …).",
            ) from failure
        self._address = address.rstrip("/")

    def __str__(self) -> str:
        return self._address

    @contextmanager
    def open(self, name: str, start: int = 0) -> Iterator[Stream]:
        """Implement the protocol."""
        with self._errors(name):
            info = self._files.info(self._path(name))
            if info["type"] != "file" or info.get("islink") or info.get("nlink", 1) != 1:
                raise not_regular(f"{self}/{name}", f"it is a {info['type']}, or has several names")
            with self._files.open(self._path(name), "rb") as file:
                file.seek(start)
                yield Stream(file, start, info.get("size"))

    def put(self, name: str, content: bytes) -> None:
        """Implement the protocol. The file is read back from the remote and compared."""
        with self._errors(name):
            self._make_parent(name)
            self._files.pipe_file(self._path(name), content)
            self._files.invalidate_cache()
            stored = self._files.cat_file(self._path(name))
        if stored != content:
            raise self._not_written(name, len(content), len(stored))

    def upload(self, name: str, path: Path) -> None:
        """Implement the protocol. The size of the file at the remote is compared."""
        with self._errors(name):
            self._make_parent(name)
            self._files.put_file(str(path), self._path(name))
        size, expected = self.size(name), path.stat().st_size
        if size != expected:
            raise self._not_written(name, expected, size or 0)

    def size(self, name: str) -> int | None:
        """Implement the protocol."""
        with self._errors(name):
            self._files.invalidate_cache()
            return self._files.size(self._path(name)) if self._files.isfile(self._path(name)) else None

    def folders(self, name: str) -> Iterator[str]:
        """Implement the protocol."""
        return self._names(name, directories=True)

    def others(self, name: str) -> Iterator[str]:
        """Implement the protocol."""
        return self._names(name, directories=False)

    def remove(self, name: str) -> None:
        """Implement the protocol."""
        with self._errors(name):
            if self._files.exists(self._path(name)):
                self._files.rm_file(self._path(name))

    def close(self) -> None:
        """Implement the protocol: ``fsspec`` keeps connections for the whole process."""

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _make_parent(self, name: str) -> None:
        self._files.makedirs(posixpath.dirname(self._path(name)), exist_ok=True)

    def _names(self, name: str, *, directories: bool) -> Iterator[str]:
        with self._errors(name):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._path(name), detail=True)
            except FileNotFoundError:
                return
        names = (entry["name"] for entry in entries if (entry["type"] == "directory") == directories)
        yield from sorted(posixpath.basename(path.rstrip("/")) for path in names)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn any exception of a remote into an error that names it, since each file system has its own classes."""
        try:
            yield
        except EdgepeftError:
            raise
        except FileNotFoundError:
            raise missing(name, self) from None
        except Exception as failure:
            raise RemoteUnreachable(
                f"The remote {self} failed.",
                context=f"{name}: {type(failure).__name__}: {failure}",
                hint="try again; check the address and the credentials.",
            ) from failure

    def _not_written(self, name: str, written: int, stored: int) -> CannotWriteFile:
        return CannotWriteFile(
            f"{self}/{name} differs from what was written.",
            context=f"{written} bytes written, {stored} read back",
            hint="try again; another program may be writing there too.",
        )
