"""Collect deliveries: read and verify each, store it as accepted or in quarantine, and record it in the ledger.

All I/O is here. The rules for a good update are in ``edgepeft.sync.collection.verification``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgepeft.intake.refusal import Refusal
from edgepeft.sync.collection.facts import HostFacts
from edgepeft.sync.collection.inbox import InboxFile, inbox_files
from edgepeft.sync.collection.quarantine import Quarantine
from edgepeft.sync.collection.verification import Address, Delivered, verify
from edgepeft.sync.errors import Equivocation, SyncError
from edgepeft.sync.keys import REVOKED, Keys
from edgepeft.sync.ledger import Entry, Ledger
from edgepeft.sync.transports import HostTransport, open_remote
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.errors import CannotReadRemote, CannotWriteFile, EdgepeftError, RemoteUnreachable
from edgepeft_runtime.files.durable import make_folder, sync_directory, sync_file
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.delivery import MAX_SIDECAR_BYTES, SIDECAR_SUFFIX, UPDATE_SUFFIX
from edgepeft_runtime.fleet.transports.transport import read
from edgepeft_runtime.shown import printable

_FAULTS_OF_THE_HOST = (SyncError, RemoteUnreachable, CannotReadRemote, CannotWriteFile)
"""Errors of a remote or of the workspace, for which no update is refused."""

_SETTLE_EVERY = 64


@dataclass(frozen=True)
class Collected:
    """The result of ``collect``.

    Attributes:
        accepted: Updates that are new.
        already_there: Number of updates that an earlier call or another remote had delivered.
        waiting: Files whose sidecar, or whose update, has not arrived yet.
        refused: Files that were refused.
    """

    accepted: tuple[Entry, ...]
    already_there: int
    waiting: tuple[str, ...]
    refused: tuple[Refusal, ...]


def collect(
    remotes: Iterable[str | Path],
    workspace: str | Path | Workspace,
    *,
    remove: bool = False,
    now: float | None = None,
) -> Collected:
    """Verify the deliveries of devices, and keep the good ones. The call is idempotent.

    Every file is read once, and the bytes that were read are verified and kept. An update is accepted once it is in the
    ledger. If the process ends before that, the next call collects it again.

    Args:
        remotes: Folders and addresses that devices deliver to.
        workspace: The host's workspace.
        remove: Remove from the remotes files that were accepted or are in quarantine, and files that wait for a closed
            round. They are always removed from the workspace's own ``received``.
        now: Seconds since 1970; ``None``: the present time.

    Raises:
        SyncError: A remote cannot be read, no round was published, or the workspace cannot be written.
    """
    workspace, remotes = Workspace.of(workspace), list(remotes)
    transports = [open_remote(remote) for remote in remotes]
    when = time.time() if now is None else now
    workspace.newest()  # before anything is made: a workspace without a round has nothing to collect
    with workspace.locked(), Ledger(workspace.ledger) as ledger:
        facts = HostFacts(workspace, ledger, when)
        collecting = _Collecting(workspace, ledger, facts, Quarantine(workspace.quarantine), remove)
        try:
            shutil.rmtree(workspace.staging, ignore_errors=True)
            make_folder(workspace.staging)
            for remote, transport in zip(remotes, transports, strict=True):
                collecting.remove = remove or _is_received(remote, workspace)
                for file in inbox_files(transport):
                    collecting.collect(transport, file)
            collecting.settle()
            _remove_empty(workspace, facts.oldest_open)
        finally:  # unsettled files are not in the ledger, and are collected again next time
            shutil.rmtree(workspace.staging, ignore_errors=True)
    return collecting.result()


def accepted(workspace: str | Path | Workspace, number: int | None = None) -> list[tuple[Entry, Path]]:
    """Return the updates that count for a round: the newest of each device that is not revoked.

    They include updates of earlier rounds (see ``entry.round``) that arrived while this one was open, if it accepts
    updates so late. No device counts twice for a round.

    Args:
        workspace: The host's workspace.
        number: The number of the round; ``None``: the newest.

    Returns:
        Entries of the ledger and their files, in the order of hashes. ``entry.scale`` is the factor of its changes.
    """
    workspace = Workspace.of(workspace)
    round_ = workspace.round(workspace.newest().round if number is None else number)
    first = max(1, round_.round - round_.max_staleness)
    revoked = {device.device for device in Keys(workspace).devices() if device.state == REVOKED}
    with Ledger(workspace.ledger) as ledger:
        entries = list(ledger.counting(round_.round, first))
    return [(entry, _kept_at(workspace, entry)) for entry in entries if entry.device not in revoked]


@dataclass
class _Collecting:
    workspace: Workspace
    ledger: Ledger
    facts: HostFacts
    quarantine: Quarantine
    remove: bool
    entries: list[Entry] = field(default_factory=list)
    already: int = 0
    waiting: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    unsettled: list[Path] = field(default_factory=list)
    done_with: list[tuple[HostTransport, InboxFile]] = field(default_factory=list)

    def result(self) -> Collected:
        return Collected(tuple(self.entries), self.already, tuple(self.waiting), tuple(self.refusals))

    def collect(self, remote: HostTransport, file: InboxFile) -> None:
        """Accept, skip, wait for or refuse a file of an inbox."""
        if self._is_leftover(remote, file):
            self._clear(remote, file)
        elif file.address is not None and self._has(file.address):
            self.already += 1
            self._clear(remote, file)
        elif file.error is not None:
            self._refuse(remote, file, file.error)
        elif file.address is None or not file.complete:
            self.waiting.append(f"{remote}/{file.name}")
        else:
            self._collect_new(remote, file, file.address)

    def _is_leftover(self, remote: HostTransport, file: InboxFile) -> bool:
        """Return whether it is half of a delivery whose other half is gone or no longer accepted."""
        if file.update is not None and self._is_done_with(remote, file.update):
            return True
        return not file.complete and self.remove and self._is_closed(file.update or file)

    def _is_closed(self, update: InboxFile) -> bool:
        return update.address is not None and update.address.round < self.facts.oldest_open

    def _is_done_with(self, remote: HostTransport, update: InboxFile) -> bool:
        """Return whether an update that is gone was collected before, so that its sidecar is obsolete."""
        assert update.address is not None
        return self._has(update.address) or self.ledger.was_refused(_source(remote, update))

    def _collect_new(self, remote: HostTransport, file: InboxFile, address: Address) -> None:
        content = sidecar = None
        try:
            content = read(remote, file.name, self.facts.newest.limits.update_bytes)
            sidecar = read(remote, file.sidecar, MAX_SIDECAR_BYTES)
            entry = verify(Delivered(address, content, sidecar), self.facts)
        except _FAULTS_OF_THE_HOST:
            raise
        except EdgepeftError as error:
            if isinstance(error, Equivocation):
                self.ledger.block(address.device, error.context or error.message)
            self._refuse(remote, file, error, content, sidecar)
        else:
            self._accept(entry, content, sidecar)
            self._clear(remote, file)

    def _has(self, address: Address) -> bool:
        entry = self.ledger.find(address.sha256)
        if entry is None or (entry.device, entry.round) != (address.device, address.round):
            return False
        kept = _kept_at(self.workspace, entry)
        return kept.is_file() and kept.stat().st_size == entry.size

    def _accept(self, entry: Entry, content: bytes, sidecar: bytes) -> None:
        kept, staged = _kept_at(self.workspace, entry), self.workspace.staging / "file"
        make_folder(kept.parent)
        for path, part in ((kept.with_suffix(SIDECAR_SUFFIX), sidecar), (kept, content)):
            staged.write_bytes(part)
            staged.replace(path)
        self.ledger.add(entry)
        self.entries.append(entry)
        self.unsettled.append(kept)
        if len(self.unsettled) >= _SETTLE_EVERY:
            self.settle()

    def settle(self) -> None:
        """Flush the files, then the ledger, so that it names only stored files. Then remove them from the remotes.

        Many files are flushed together, since the first flush costs nearly as much as all of them.
        """
        for kept in self.unsettled:
            for path in (kept, kept.with_suffix(SIDECAR_SUFFIX)):
                sync_file(path)
        for folder in {kept.parent for kept in self.unsettled}:
            sync_directory(folder)
        self.ledger.commit()
        for remote, file in self.done_with:
            # The sidecar last: alone it is recognized as a leftover, while an update alone may still await its sidecar.
            with suppress(EdgepeftError, OSError):
                remote.remove(file.name)
                remote.remove(file.sidecar)
        self.unsettled, self.done_with = [], []

    def _refuse(
        self,
        remote: HostTransport,
        file: InboxFile,
        error: EdgepeftError,
        content: bytes | None = None,
        sidecar: bytes | None = None,
    ) -> None:
        refusal, now = Refusal.of(_source(remote, file), error), int(self.facts.now)
        digests = [signatures.sha256(part) if part is not None else "-" for part in (content, sidecar)]
        key = signatures.sha256("\n".join([refusal.source, refusal.code, *digests]).encode())
        folder = self.quarantine.folder(refusal, key)
        is_new = self.ledger.refuse(key, refusal.code, refusal.reason, refusal.source, now)
        if is_new or not folder.exists():
            self.quarantine.keep(folder, refusal, now, content, sidecar)
        self.refusals.append(replace(refusal, kept=folder if folder.exists() else None))
        if content is not None and (folder / "update").exists():
            self._clear(remote, file)

    def _clear(self, remote: HostTransport, file: InboxFile) -> None:
        """Mark a file that is kept here, so that it is removed from its remote."""
        if self.remove:
            self.done_with.append((remote, file))


def _source(remote: HostTransport, file: InboxFile) -> str:
    return printable(f"{remote}/{file.name}", keep="")


def _kept_at(workspace: Workspace, entry: Entry) -> Path:
    return workspace.accepted / rounds.folder(entry.round) / entry.device / f"{entry.sha256}{UPDATE_SUFFIX}"


def _is_received(remote: str | Path, workspace: Workspace) -> bool:
    """Return whether a remote is the folder that the workspace's own server fills."""
    return Path(str(remote).removeprefix("file://")).absolute() == workspace.received.absolute()


def _remove_empty(workspace: Workspace, oldest_open: int) -> None:
    """Remove the empty folders of closed rounds; a device may be writing to those of open ones."""
    for folder in sorted(workspace.received.glob(f"{rounds.INBOX}/*")):
        if (rounds.number_of(folder.name) or oldest_open) < oldest_open:
            for empty in (*folder.iterdir(), folder):
                with suppress(OSError):
                    empty.rmdir()
