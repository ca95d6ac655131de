"""List the files in the inbox of a remote, each with its expected content (section 8 of the SPEC)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgepeft.sync.collection.verification import Address
from edgepeft.sync.errors import BadName, StrayFile
from edgepeft.sync.transports import HostTransport
from edgepeft_runtime.errors import CannotReadRemote, EdgepeftError
from edgepeft_runtime.fleet import rounds
from edgepeft_runtime.fleet.delivery import SIDECAR_SUFFIX, UPDATE_SUFFIX, digest_of, inbox_folder
from edgepeft_runtime.fleet.reading import is_name


@dataclass(frozen=True)
class InboxFile:
    """A file in an inbox.

    Attributes:
        name: Its name in the remote.
        address: The round, device and hash that its path names; ``None`` if it cannot be part of a delivery.
        error: The reason why it cannot.
        complete: Whether both the update and its sidecar are there.
        update: For a sidecar without its update, the update that it belongs to.
    """

    name: str
    address: Address | None = None
    error: EdgepeftError | None = None
    complete: bool = True
    update: InboxFile | None = None

    @property
    def sidecar(self) -> str:
        """The name of the update's sidecar."""
        return _sidecar_of(self.name)


def inbox_files(remote: HostTransport) -> Iterator[InboxFile]:
    """Yield everything in the inbox of a remote, except files that are still being written."""
    yield from _strays(remote, rounds.INBOX)
    for name in remote.folders(rounds.INBOX):
        folder, number = f"{rounds.INBOX}/{name}", rounds.number_of(name)
        if number is None:
            yield _bad_name(folder, "The folder is not that of a round.")
        else:
            yield from _readable(folder, _of_round(remote, number, folder))


def _of_round(remote: HostTransport, number: int, folder: str) -> Iterator[InboxFile]:
    yield from _strays(remote, folder)
    for device in remote.folders(folder):
        if is_name(device):
            yield from _readable(f"{folder}/{device}", _of_device(remote, number, device))
        else:
            yield _bad_name(f"{folder}/{device}", "The folder's name is not the name of a device.")


def _readable(folder: str, files: Iterator[InboxFile]) -> Iterator[InboxFile]:
    """Yield the files of a folder. If it cannot be read, it is refused as a whole, and other folders are still read."""
    try:
        yield from files
    except CannotReadRemote as error:
        yield InboxFile(folder, error=error)


def _of_device(remote: HostTransport, number: int, device: str) -> Iterator[InboxFile]:
    folder = inbox_folder(number, device)
    names = {name for name in remote.others(folder) if not name.startswith(".")}
    for name in sorted(names):
        path, digest, sidecar = f"{folder}/{name}", digest_of(name), digest_of(name, SIDECAR_SUFFIX)
        if digest is not None:
            yield InboxFile(path, Address(number, device, digest), complete=_sidecar_of(name) in names)
        elif sidecar is None:
            yield _bad_name(path, "The file's name is not the hash of an update.")
        elif f"{sidecar}{UPDATE_SUFFIX}" not in names:
            update = InboxFile(f"{folder}/{sidecar}{UPDATE_SUFFIX}", Address(number, device, sidecar))
            yield InboxFile(path, complete=False, update=update)
    for name in remote.folders(folder):
        yield _stray(f"{folder}/{name}", "There is a folder where updates should be.")


def _strays(remote: HostTransport, folder: str) -> Iterator[InboxFile]:
    """Yield files, links and pipes where only folders should be."""
    for name in remote.others(folder):
        if not name.startswith("."):
            yield _stray(f"{folder}/{name}", "There is a file where only folders should be.")


def _stray(name: str, message: str) -> InboxFile:
    return InboxFile(name, error=StrayFile(message, context=None, hint=None))


def _bad_name(name: str, message: str) -> InboxFile:
    return InboxFile(name, error=BadName(message, context=None, hint=None))


def _sidecar_of(name: str) -> str:
    return name.removesuffix(UPDATE_SUFFIX) + SIDECAR_SUFFIX
