"""The host's workspace: keys, published rounds, received and accepted updates, and the ledger."""

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
    """A folder on the host. The host trusts the rounds in its ``published`` alone, whatever remotes contain.

    Attributes:
        published: ``latest.json``, ``latest.sig``, a folder per round, and files of bundles.
        keys: The host's key, and the registered devices.
        received: Files that ``edgepeft serve`` has received, collected like those of any remote.
        accepted: Verified updates, ``<round>/<device>/<sha256>.safetensors`` with their sidecars.
        quarantine: Refused files, a folder per code.
        staging: Files that are being accepted.
        ledger: The ledger of accepted updates.
        manifest: The manifest of the campaign's bundle.
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
        """Return the workspace at a path; a workspace is returned unchanged."""
        return workspace if isinstance(workspace, Workspace) else cls(workspace)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the workspace against other processes that collect or publish.

        Raises:
            FileError: Another process has the lock (``path-in-use``), or the folder cannot be written
                (``cannot-write-file``), now or while the lock is held.
        """
        return locked_folder(self.path, "lock")

    def latest(self) -> Latest | None:
        """Return the newest round that was published, ``None`` before the first."""
        path = self.published / LATEST_FILE
        return _own(path, Latest.from_bytes) if path.exists() else None

    def newest(self) -> Latest:
        """Return ``latest``; raises ``SyncError`` (``no-round``) before the first round."""
        latest = self.latest()
        if latest is None:
            raise NoRound(
                f"{self.path} has published no round.",
                context=None,
                hint="run `edgepeft publish` first.",
            )
        return latest

    def round(self, number: int) -> Round:
        """Return a published round.

        Raises:
            SyncError: There is none of this number (``no-such-round``), or its file is damaged (``damaged-workspace``).
        """
        path = self.published / rounds.folder(number) / ROUND_FILE
        if not path.exists():
            hint = "`edgepeft status` lists the rounds."
            raise NoSuchRound(f"There is no round {number}.", context=f"in {self.published}", hint=hint)
        return _own(path, Round.from_bytes)

    def adapter(self, number: int) -> Path:
        """Return the adapter file of a round; raises ``SyncError`` (``damaged-workspace``) if it has changed."""
        path = self.published / rounds.folder(number) / ADAPTER_FILE
        expected, digest = self.round(number).adapter.sha256, sha256_of(path)
        if digest != expected:
            raise _damaged(path, f"expected SHA-256 {expected}, found {digest}")
        return path

    def check_chain(self) -> None:
        """Check the hashes from the latest to the first round; raises ``SyncError`` if one is wrong."""
        latest = self.newest()
        number, expected = latest.round, latest.round_sha256
        while True:
            round_ = self.round(number)
            if round_.sha256 != expected:
                path = self.published / rounds.folder(number) / ROUND_FILE
                raise _damaged(path, f"expected SHA-256 {expected}, found {round_.sha256}")
            if round_.previous is None:
                return
            number, expected = number - 1, round_.previous

    def bundle_manifest(self) -> Manifest:
        """Return the manifest of the campaign's bundle, which the first ``publish`` has stored."""
        return _own(self.manifest, Manifest.from_json)


def _own(path: Path, parse: Callable[[bytes], T]) -> T:
    """Read a file of the host. If it is damaged, the error blames the workspace, not an update."""
    try:
        return parse(read_regular(path, MAX_MANIFEST_BYTES))
    except (EdgepeftError, OSError) as failure:
        raise _damaged(path, getattr(failure, "message", str(failure))) from failure


def _damaged(path: Path, context: str) -> SyncError:
    hint = "restore it from a remote that has a copy."
    return DamagedWorkspace(f"{path} is not what was published.", context=context, hint=hint)
