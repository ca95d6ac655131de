"""Where a device meets its host: a folder (a USB stick, a mount) or an HTTP server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Protocol, cast

from edgepeft_runtime.errors import FleetError
from edgepeft_runtime.files.durable import writing
from edgepeft_runtime.files.regular import open_regular
from edgepeft_runtime.fleet.files import make_folders, write_new

PIECE = 2**18
"""Bytes that are read at a time."""


class Place(Protocol):
    """Files by name, ``/`` between folders. Every method raises :class:`FleetError` where it cannot do its work."""

    def read(self, name: str, most: int) -> bytes | None:
        """A small file, ``None`` where there is none; refused (``too-large``) if it has more than ``most`` bytes."""

    def fetch(self, name: str, into: Path, size: int) -> None:
        """Bring a file of ``size`` bytes to ``into``; what an earlier try has brought there is not fetched again."""

    def put(self, name: str, content: bytes) -> None:
        """Write a file as a whole."""

    def close(self) -> None:
        """Close what is kept open between calls."""


def open_place(address: str | Path, *, token: str = "", ca_file: str | Path | None = None) -> Place:
    """The place behind an address.

    Args:
        address: a folder, or an ``http://`` or ``https://`` address.
        token: what an HTTP server wants to see of this device.
        ca_file: certificates (PEM) to trust instead of the system's.
    """
    text = str(address)
    if text.startswith(("http://", "https://")):
        from edgepeft_runtime.fleet.http_place import HttpPlace

        return HttpPlace(text, token, ca_file)
    if "://" in text:
        raise FleetError(
            "no-such-place",
            f"A device cannot reach {text}.",
            context=None,
            hint="give a folder, or an http:// or https:// address; the host itself can use other stores.",
        )
    return FolderPlace(text)


@contextmanager
def reached(place: str | Path | Place, token: str, ca_file: str | Path | None) -> Iterator[Place]:
    """A place, opened by its address if need be, and then closed at the end."""
    if not isinstance(place, str | Path):
        yield place
        return
    with closing(open_place(place, token=token, ca_file=ca_file)) as found:
        yield found


class FolderPlace:
    """A folder. Links in it are not followed: what others may write to is not to be trusted."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_dir():
            raise FleetError(
                "no-such-place",
                f"There is no folder {path}.",
                context=None,
                hint="mount it, or plug it in.",
            )

    def __str__(self) -> str:
        return str(self._path)

    def read(self, name: str, most: int) -> bytes | None:
        """See :class:`Place`."""
        path = self._path / name
        if not os.path.lexists(path):
            return None
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                content = file.read(most + 1)
        except OSError as failure:
            raise cannot_read(str(path), failure) from failure
        if len(content) > most:
            raise too_large(str(path), most)
        return content

    def fetch(self, name: str, into: Path, size: int) -> None:
        """See :class:`Place`."""
        path = self._path / name
        start = into.stat().st_size if into.exists() else 0
        try:
            with os.fdopen(open_regular(path), "rb") as file, open_partial(into, "ab") as partial:
                file.seek(start)
                while piece := file.read(min(PIECE, size - start + 1)):
                    start += len(piece)
                    if start > size:
                        raise too_large(str(path), size)
                    keep(partial, piece)
        except OSError as failure:
            raise cannot_read(str(path), failure) from failure

    def put(self, name: str, content: bytes) -> None:
        """See :class:`Place`."""
        write_new(make_folders(self._path, name), content)

    def close(self) -> None:
        """See :class:`Place`: nothing is."""


def open_partial(into: Path, mode: str) -> IO[bytes]:
    """The file that what is being fetched goes to; that it cannot be made is not to be taken for a bad place."""
    with writing(into, FleetError):
        return cast(IO[bytes], into.open(mode))


def keep(partial: IO[bytes], piece: bytes) -> None:
    """Write a piece of what is being fetched; a full disk is not to be taken for a bad place."""
    with writing(partial.name, FleetError):
        partial.write(piece)
        partial.flush()


def cannot_read(name: str, failure: Exception) -> FleetError:
    """The error of a file that is there and cannot be read."""
    return FleetError("cannot-read-file", f"Cannot read {name}.", context=str(failure), hint="fetch or copy it again.")


def missing(name: str, where: str) -> FleetError:
    """The error of a file that should be there."""
    return FleetError(
        "no-such-file",
        f"There is no {name} at {where}.",
        context=None,
        hint="check the address; publish a round there.",
    )


def too_large(name: str, most: int) -> FleetError:
    """The error of a file that is larger than it may be."""
    return FleetError(
        "too-large", f"{name} is larger than it may be.", context=f"at most {most} bytes are taken", hint=None
    )
