"""The host's workspace: keys, the published rounds, what came in, and the ledger."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from edgepeft.sync.errors import DamagedWorkspace, NoRound, NoSuchRound, SyncError
from edgepeft_runtime.bundle.manifest import MAX_MANIFEST_BYTES, Manifest
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.lock import locked_folder
from edgepeft_runtime.files.regular import read_regular
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet import rounds
from edgepeft_runtime.fleet.rounds import ADAPTER_FILE, LATEST_FILE, ROUND_FILE, Latest, Round

T = TypeVar("T")


class Workspace:
    """A folder on the host; what lies in ``published`` there is what the host believes, whatever remote places hold.

    Attributes:
        published: ``latest.json``, ``latest.sig`` and a folder per round.
        keys: the host's key, and what it knows of each device.
        received: where ``edgepeft serve`` puts what devices send: a place like any other.
        accepted: updates that were verified, ``<round>/<device>/<sha256>.safetensors`` with its sidecar.
        quarantine: what was refused, a folder per code.
        staging: files that are being verified.
        ledger: what was accepted, and when.
        manifest: the manifest of the campaign's bundle.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.keys = self.path / "keys"
        self.published = self.path / "pub"
        self.received = self.path / "received"
        self.accepted = self.path / "accepted"
        self.quarantine = self.path / "quarantine"
        self.staging = self.path / "staging"
        self.ledger = self.path / "ledger.sqlite"
        self.manifest = self.path / "manifest.json"

    @classmethod
    def of(cls, workspace: str | Path | Workspace) -> Workspace:
        """Return a workspace by its path, or the one that is given."""
        return workspace if isinstance(workspace, Workspace) else cls(workspace)

    def locked(self) -> AbstractContextManager[None]:
        """Let no other process pull or publish meanwhile.

        Raises:
            SyncError: another one does (``folder-in-use``), or the folder cannot be used (``cannot-write-file``), now
                or in the middle of what is done under the lock.
        """
        return locked_folder(self.path, "lock")

    def latest(self) -> Latest | None:
        """The newest round that was published, ``None`` before the first."""
        path = self.published / LATEST_FILE
        return _own(path, Latest.from_bytes) if path.exists() else None

    def newest(self) -> Latest:
        """:meth:`latest`; raises :class:`SyncError` (``no-round``) before the first."""
        latest = self.latest()
        if latest is None:
            raise NoRound(
                f"{self.path} has published no round.",
                context=None,
                hint="run `edgepeft publish` first.",
            )
        return latest

    def round(self, number: int) -> Round:
        """A published round.

        Raises:
            SyncError: there is none of this number (``no-such-round``), or its file is damaged (``damaged-workspace``).
        """
        path = self.published / rounds.folder(number) / ROUND_FILE
        if not path.exists():
            raise NoSuchRound(f"There is no round {number}.", context=f"in {self.published}", hint=None)
        return _own(path, Round.from_bytes)

    def adapter(self, number: int) -> Path:
        """The adapter of a round; raises :class:`SyncError` (``damaged-workspace``) if it is not what was published."""
        path = self.published / rounds.folder(number) / ADAPTER_FILE
        expected, found = self.round(number).adapter.sha256, sha256_of(path)
        if found != expected:
            raise _damaged(path, f"expected SHA-256 {expected}, found {found}")
        return path

    def check_chain(self) -> None:
        """Walk from the latest to the first round; raises :class:`SyncError` where a link does not hold."""
        latest = self.newest()
        number, expected = latest.round, latest.round_sha256
        while True:
            found = self.round(number)
            if found.sha256 != expected:
                path = self.published / rounds.folder(number) / ROUND_FILE
                raise _damaged(path, f"expected SHA-256 {expected}, found {found.sha256}")
            if found.previous is None:
                return
            number, expected = number - 1, found.previous

    def bundle_manifest(self) -> Manifest:
        """The manifest of the campaign's bundle, as the first ``publish`` kept it."""
        return _own(self.manifest, Manifest.from_json)


def _own(path: Path, parse: Callable[[bytes], T]) -> T:
    """A file of the host's own: where it is damaged, the host is at fault, and no update."""
    try:
        return parse(read_regular(path, MAX_MANIFEST_BYTES))
    except (EdgepeftError, OSError) as failure:
        raise _damaged(path, getattr(failure, "message", str(failure))) from failure


def _damaged(path: Path, context: str) -> SyncError:
    hint = "restore it from a place that has a copy."
    return DamagedWorkspace(f"{path} is not what was published.", context=context, hint=hint)
