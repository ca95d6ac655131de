"""The host's side of deliveries: out of places, through all checks, into ``accepted`` or into quarantine."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgepeft.sync.collection.verification import Address, Verifier, copy_hashed
from edgepeft.sync.errors import SyncError
from edgepeft.sync.keys import REVOKED, Keys
from edgepeft.sync.ledger import Entry, Ledger
from edgepeft.sync.transports import HostTransport, open_remote
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.errors import EdgepeftError, FleetError
from edgepeft_runtime.files.durable import make_folder, sync_directory, sync_file, write_atomically
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.delivery import MAX_SIDECAR_BYTES, SIDECAR_SUFFIX, UPDATE_SUFFIX, digest_of, inbox_folder
from edgepeft_runtime.fleet.reading import is_name
from edgepeft_runtime.fleet.transports.transport import read

MAX_QUARANTINE_BYTES = 2**30
"""What is refused is kept up to this size in all, reasons among it; beyond, only the ledger knows of it."""

_BLOCK = 2**12
_SETTLE_EVERY = 64


@dataclass(frozen=True)
class Refusal:
    """A file that was refused: where it lay, the code, the reason, and where it is in quarantine, if there was room."""

    source: str
    code: str
    reason: str
    kept: Path | None


@dataclass(frozen=True)
class Collected:
    """What :func:`collect` did.

    Attributes:
        accepted: updates that are new.
        already_there: how many an earlier call, or another place, had brought.
        waiting: files whose sidecar, or whose update, is not there yet.
        refused: what is no good.
    """

    accepted: tuple[Entry, ...]
    already_there: int
    waiting: tuple[str, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True)
class _Found:
    """A file in an inbox: what it should be, or the code and the reason why it can be nothing.

    ``leftover_of`` is the update that a sidecar without one belongs to.
    """

    name: str
    at: Address | None = None
    code: str = ""
    reason: str = ""
    whole: bool = True
    leftover_of: _Found | None = None


def collect(
    places: Iterable[str | Path],
    workspace: str | Path | Workspace,
    *,
    remove: bool = False,
    now: float | None = None,
) -> Collected:
    """Verify what devices have delivered, and keep what is good. To repeat it changes nothing.

    Every file is copied first; what is checked, and kept, is the copy. An update is accepted when it is in the ledger;
    if the process ends before that, the next call takes it anew.

    Args:
        places: folders and remote addresses that devices deliver to.
        workspace: the host's workspace.
        remove: remove from the places what was accepted or is in quarantine, and what waits for a round that is closed.
            The workspace's own ``received`` is always emptied so.
        now: seconds since 1970; ``None`` asks the clock.

    Raises:
        SyncError: a place cannot be read, no round was published, or the workspace cannot be written.
    """
    workspace = Workspace.of(workspace)
    places = list(places)
    stores = [open_remote(place) for place in places]
    when = time.time() if now is None else now
    with workspace.locked(), Ledger(workspace.ledger) as ledger:
        collecting = _Collecting(workspace, ledger, Verifier(workspace, ledger, when), int(when), remove)
        try:
            shutil.rmtree(workspace.staging, ignore_errors=True)
            make_folder(workspace.staging)
            for place, store in zip(places, stores, strict=True):
                collecting.remove = remove or _is_received(place, workspace)
                for found in _deliveries(store):
                    collecting.take(store, found)
            collecting.settle()
            _remove_empty(workspace, collecting.verifier.oldest_open)
        finally:  # what is not settled is not in the ledger, and is taken anew next time
            shutil.rmtree(workspace.staging, ignore_errors=True)
    return collecting.result()


def accepted(workspace: str | Path | Workspace, number: int | None = None) -> list[tuple[Entry, Path]]:
    """What counts for the end of a round: the newest update of each device that is not revoked, in order of hashes.

    Those of earlier rounds are among them where they came while this one was open and it allows them so late:
    ``entry.round`` tells. No device counts twice for a round.

    Args:
        workspace: the host's workspace.
        number: the round, ``None``: the newest.

    Returns:
        Entries of the ledger and their files. ``entry.scale`` is how much of its changes counts.
    """
    workspace = Workspace.of(workspace)
    asked = workspace.round(workspace.newest().round if number is None else number)
    first = max(1, asked.round - asked.max_staleness)
    revoked = {device.device for device in Keys(workspace).devices() if device.state == REVOKED}
    with Ledger(workspace.ledger) as ledger:
        entries = list(ledger.counting(asked.round, first))
    return [(entry, _kept_at(workspace, entry)) for entry in entries if entry.device not in revoked]


@dataclass
class _Collecting:
    workspace: Workspace
    ledger: Ledger
    verifier: Verifier
    now: int
    remove: bool
    entries: list[Entry] = field(default_factory=list)
    already: int = 0
    waiting: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    unsettled: list[Path] = field(default_factory=list)
    done_with: list[tuple[HostTransport, _Found]] = field(default_factory=list)
    quarantined: int | None = None

    def result(self) -> Collected:
        return Collected(tuple(self.entries), self.already, tuple(self.waiting), tuple(self.refusals))

    def take(self, store: HostTransport, found: _Found) -> None:
        """One file of an inbox: accept, skip, wait or refuse."""
        if self._is_leftover(store, found):
            self._clear(store, found)
        elif found.at is not None and self._has(found.at):
            self.already += 1
            self._clear(store, found)
        elif not found.whole:
            self.waiting.append(f"{store}/{found.name}")
        elif found.at is None:
            self._refuse(store, found, FleetError(found.code, found.reason, context=None, hint=None))
        else:
            self._take_new(store, found, found.at)

    def _is_leftover(self, store: HostTransport, found: _Found) -> bool:
        """Whether it is half of a delivery whose other half is gone, or will not come any more."""
        if found.leftover_of is not None and self._is_done_with(store, found.leftover_of):
            return True
        return not found.whole and self.remove and self._is_closed(found)

    def _is_closed(self, found: _Found) -> bool:
        """Whether a file is of a round that no update is taken of any more: what it waits for will not come."""
        update = found if found.leftover_of is None else found.leftover_of
        return update.at is not None and update.at.round < self.verifier.oldest_open

    def _is_done_with(self, store: HostTransport, update: _Found) -> bool:
        """Whether an update that is gone from its place was taken from there; its sidecar is then of no more use."""
        assert update.at is not None
        return self._has(update.at) or self.ledger.was_refused(_plain(f"{store}/{update.name}"))

    def _take_new(self, store: HostTransport, found: _Found, at: Address) -> None:
        copy, sidecar = self.workspace.staging / "update", None
        try:
            with store.open(found.name) as stream:
                digest = copy_hashed(stream.file, copy, self.verifier.most)
            sidecar = read(store, _sidecar_of(found.name), MAX_SIDECAR_BYTES)
            entry = self.verifier.judge(at, digest, copy, sidecar)
        except SyncError:  # the place or the workspace is at fault, not the update
            raise
        except EdgepeftError as error:
            self._refuse(store, found, error, copy, sidecar)
        else:
            self._accept(entry, copy, sidecar)
            self._clear(store, found)
        copy.unlink(missing_ok=True)

    def _has(self, at: Address) -> bool:
        entry = self.ledger.find(at.sha256)
        if entry is None or (entry.device, entry.round) != (at.device, at.round):
            return False
        kept = _kept_at(self.workspace, entry)
        return kept.is_file() and kept.stat().st_size == entry.size

    def _accept(self, entry: Entry, copy: Path, sidecar: bytes) -> None:
        kept, staged = _kept_at(self.workspace, entry), self.workspace.staging / "sidecar"
        make_folder(kept.parent)
        staged.write_bytes(sidecar)
        staged.replace(kept.with_suffix(SIDECAR_SUFFIX))
        copy.replace(kept)
        self.ledger.add(entry)
        self.entries.append(entry)
        self.unsettled.append(kept)
        if len(self.unsettled) >= _SETTLE_EVERY:
            self.settle()

    def settle(self) -> None:
        """Flush the files, then the ledger: what is in it is there. Only then remove from the places, if asked to.

        Many at a time: the first flush of a few costs nearly as much as all of them.
        """
        for kept in self.unsettled:
            for path in (kept, kept.with_suffix(SIDECAR_SUFFIX)):
                sync_file(path)
        for folder in {kept.parent for kept in self.unsettled}:
            sync_directory(folder)
        self.ledger.commit()
        for store, found in self.done_with:
            # The sidecar last: alone it is known for what it is, and an update alone may still be on its way.
            with suppress(EdgepeftError, OSError):
                store.remove(found.name)
                store.remove(_sidecar_of(found.name))
        self.unsettled, self.done_with = [], []

    def _refuse(
        self,
        store: HostTransport,
        found: _Found,
        error: EdgepeftError,
        copy: Path | None = None,
        sidecar: bytes | None = None,
    ) -> None:
        source, code = _plain(f"{store}/{found.name}"), error.reference
        reason = "\n".join(map(_plain, [error.message, *(error.context or "").splitlines()]))
        content = copy.read_bytes() if copy is not None and copy.exists() and error.reference != "too-large" else None
        digests = [signatures.sha256(part) if part is not None else "-" for part in (content, sidecar)]
        key = signatures.sha256("\n".join([source, code, *digests]).encode())
        folder = self.workspace.quarantine / code / key[:16]
        if self.ledger.refuse(key, code, reason, source, self.now) or not folder.exists():
            self._quarantine(folder, {"code": code, "reason": reason, "source": source}, content, sidecar)
        self.refusals.append(Refusal(source, code, reason, folder if folder.exists() else None))
        if content is not None and (folder / "update").exists():
            self._clear(store, found)

    def _quarantine(self, folder: Path, told: dict[str, str], content: bytes | None, sidecar: bytes | None) -> None:
        if self.quarantined is None:
            self.quarantined = _size(self.workspace.quarantine)
        text = json.dumps({**told, "at": self.now}, ensure_ascii=False, indent=2).encode()
        for name, part in (("reason.json", text), ("update", content), ("sidecar", sidecar)):
            if part is None:
                continue
            if self.quarantined + _on_disk(len(part)) > MAX_QUARANTINE_BYTES:
                break
            make_folder(folder)
            write_atomically(folder / name, [part], error=SyncError)
            self.quarantined += _on_disk(len(part))

    def _clear(self, store: HostTransport, found: _Found) -> None:
        """This file is kept here, and may go from its place."""
        if self.remove:
            self.done_with.append((store, found))


def _deliveries(store: HostTransport) -> Iterator[_Found]:
    """Everything in the inbox of a place that is not about to be written."""
    yield from _strays(store, rounds.INBOX)
    for name in store.folders(rounds.INBOX):
        folder, number = f"{rounds.INBOX}/{name}", rounds.number_of(name)
        if number is None:
            yield _Found(folder, code="bad-name", reason="The folder is that of no round.")
        else:
            yield from _readable(folder, _of_round(store, number, folder))


def _of_round(store: HostTransport, number: int, folder: str) -> Iterator[_Found]:
    yield from _strays(store, folder)
    for device in store.folders(folder):
        if is_name(device):
            yield from _readable(f"{folder}/{device}", _of_device(store, number, device))
        else:
            yield _Found(f"{folder}/{device}", code="bad-name", reason="The folder's name is no name of a device.")


def _readable(folder: str, inside: Iterator[_Found]) -> Iterator[_Found]:
    """What is in a folder; one that cannot be read is refused as a whole, and stops nobody else."""
    try:
        yield from inside
    except SyncError as error:
        if error.reference != "cannot-read-remote":
            raise
        yield _Found(folder, code="cannot-read-file", reason=f"{error.message} {error.context}")


def _of_device(store: HostTransport, number: int, device: str) -> Iterator[_Found]:
    folder = inbox_folder(number, device)
    names = {name for name in store.others(folder) if not name.startswith(".")}
    for name in sorted(names):
        digest = digest_of(name)
        if digest is not None:
            at = Address(number, device, digest)
            yield _Found(f"{folder}/{name}", at, whole=_sidecar_of(name) in names)
        elif digest_of(name, SIDECAR_SUFFIX) is None:
            yield _Found(f"{folder}/{name}", code="bad-name", reason="The file's name is not the hash of an update.")
        elif (update := name.removesuffix(SIDECAR_SUFFIX) + UPDATE_SUFFIX) not in names:
            gone = _Found(f"{folder}/{update}", Address(number, device, digest_of(update) or ""))
            yield _Found(f"{folder}/{name}", whole=False, leftover_of=gone)
    for name in store.folders(folder):
        yield _Found(f"{folder}/{name}", code="stray-file", reason="There is a folder where updates should be.")


def _strays(store: HostTransport, folder: str) -> Iterator[_Found]:
    """Files, links and pipes where only folders should be."""
    for name in store.others(folder):
        if not name.startswith("."):
            yield _Found(f"{folder}/{name}", code="stray-file", reason="There is no folder where one should be.")


def _plain(text: str) -> str:
    """Text from who knows where, as it may be shown on a terminal and kept: one line, nothing that is not print."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _sidecar_of(name: str) -> str:
    return name.removesuffix(UPDATE_SUFFIX) + SIDECAR_SUFFIX


def _kept_at(workspace: Workspace, entry: Entry) -> Path:
    return workspace.accepted / rounds.folder(entry.round) / entry.device / f"{entry.sha256}{UPDATE_SUFFIX}"


def _is_received(place: str | Path, workspace: Workspace) -> bool:
    """Whether a place is where the workspace's own server puts what it receives."""
    return Path(str(place).removeprefix("file://")).absolute() == workspace.received.absolute()


def _remove_empty(workspace: Workspace, oldest_open: int) -> None:
    """Remove the folders of closed rounds that nothing lies in; in those of open ones a device may be writing."""
    for folder in sorted(workspace.received.glob(f"{rounds.INBOX}/*")):
        if (rounds.number_of(folder.name) or oldest_open) < oldest_open:
            for empty in (*folder.iterdir(), folder):
                with suppress(OSError):
                    empty.rmdir()


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(_on_disk(os.path.getsize(Path(root) / name)) for root, _, names in os.walk(folder) for name in names)


def _on_disk(size: int) -> int:
    """What a file takes: many small ones fill a disk, too."""
    return -(-size // _BLOCK) * _BLOCK
