"""The transport of the files of a fleet: one protocol, and the common parts of its implementations.

A user names a *remote*, a folder or an address; a ``Transport`` reads and writes the files there. Nothing that it
brings is trusted.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgepeft_runtime.errors import (
    CannotReadFile,
    IncompleteFile,
    NoSuchFile,
    NotARegularFile,
    RemoteUnreachable,
    TooLarge,
)
from edgepeft_runtime.files.durable import writing

PIECE = 2**18
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class Stream:
    """A file of a remote that is open for reading.

    Args:
        file: yields the bytes from position ``start`` on.
        start: the requested position, or 0 if the remote can only send whole files.
        size: the bytes of the whole file, ``None`` where the remote does not say.
    """

    file: IO[bytes]
    start: int
    size: int | None


class Transport(Protocol):
    """The files of a remote by name, with ``/`` between folders. Methods raise ``EdgepeftError``."""

    def open(self, name: str, start: int = 0) -> AbstractContextManager[Stream]:
        """Open a file for reading from a position on.

        Raises:
            NoSuchFile: the remote has no such file.
            NotARegularFile: it is something else, or a file with several names.
            EdgepeftError: it cannot be read.
        """

    def put(self, name: str, content: bytes) -> None:
        """Write a small file as a whole, replacing an older one."""

    def close(self) -> None:
        """Close connections that stay open between calls."""


def read(transport: Transport, name: str, most: int) -> bytes:
    """Return the content of a small file.

    Raises:
        NoSuchFile: there is none.
        TooLarge: it has more than ``most`` bytes.
    """
    with transport.open(name) as stream:
        size = stream.size or 0
        # One byte more than allowed shows an excess. Memory is allocated for the size that is passed to read().
        content = b"" if size > most else stream.file.read((most if stream.size is None else size) + 1)
    if max(size, len(content)) > most:
        raise too_large(f"{transport}/{name}", most)
    if stream.size is not None and len(content) < stream.size:
        raise _broke_off(transport, name, len(content), stream.size)
    return content


def fetch(transport: Transport, name: str, into: Path, size: int) -> None:
    """Fetch a file of ``size`` bytes to ``into``, resuming an earlier attempt.

    An attempt that got further before the connection broke is followed by another. The content is not verified.

    Raises:
        TooLarge: the file has more bytes.
        IncompleteFile: it has fewer.
        EdgepeftError: it cannot be read.
    """
    if _size(into) > size:
        into.unlink()
    with writing(into):
        into.touch()
    while (start := _size(into)) < size:
        try:
            with transport.open(name, start) as stream:
                _copy(stream, into, size, f"{transport}/{name}")
        except RemoteUnreachable:
            if _size(into) <= start:
                raise
        if _size(into) <= start:
            raise _broke_off(transport, name, start, size)


def _copy(stream: Stream, into: Path, size: int, name: str) -> None:
    left = size - stream.start
    with writing(into):  # a full disk is not mistaken for a bad remote
        partial = into.open("ab" if stream.start else "wb")
    with partial:
        while piece := stream.file.read(min(PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise too_large(name, size)
            with writing(into):
                partial.write(piece)
                partial.flush()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _broke_off(transport: Transport, name: str, received: int, size: int) -> IncompleteFile:
    return IncompleteFile(
        f"{transport}/{name} ended after {received} of {size} bytes.",
        context=None,
        hint="try again; the received part is kept. If the error persists, the file at the remote is incomplete.",
    )


def cannot_read(name: str, failure: Exception) -> CannotReadFile:
    """The error of a file that exists and cannot be read."""
    return CannotReadFile(f"Cannot read {name}.", context=str(failure), hint="fetch or copy it again.")


def missing(name: str, remote: object) -> NoSuchFile:
    """The error of a file that the remote does not have."""
    return NoSuchFile(
        f"There is no {name} at {remote}.",
        context=None,
        hint="check the address; publish a round there.",
    )


def too_large(name: str, most: int) -> TooLarge:
    """The error of a file with more bytes than are accepted."""
    return TooLarge(f"{name} is larger than it may be.", context=f"at most {most} bytes are accepted", hint=None)


def not_regular(name: str, kind: str) -> NotARegularFile:
    """Return the error of a path that is not a regular file with one name."""
    hint = "replace it by the file itself."
    return NotARegularFile(f"{name} is not a regular file.", context=kind, hint=hint)
