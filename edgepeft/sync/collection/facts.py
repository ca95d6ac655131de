"""The host's facts for ``edgepeft.sync.collection.verification``, read from its workspace on demand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from edgepeft.sync.keys import Device, Keys
from edgepeft.sync.ledger import Entry, Ledger
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.files.tensorfile import Array, read_tensors
from edgepeft_runtime.fleet.rounds import Round


class HostFacts:
    """Implement ``Facts``.

    Args:
        workspace: The host's workspace, with at least one round.
        ledger: The updates that were accepted before.
        now: Seconds since 1970.

    Raises:
        SyncError: From the constructor and from look-ups: a file of the workspace is damaged, which no update has
            caused.
    """

    def __init__(self, workspace: Workspace, ledger: Ledger, now: float) -> None:
        self.now = now
        self.newest = workspace.round(workspace.newest().round)
        self.manifest = workspace.bundle_manifest()
        self._workspace, self._ledger, self._keys = workspace, ledger, Keys(workspace)
        self._round = lru_cache(maxsize=16)(workspace.round)
        self._start = lru_cache(maxsize=4)(self._read_start)

    @property
    def oldest_open(self) -> int:
        """The oldest round whose updates are accepted."""
        return self.newest.round - self.newest.max_staleness

    def device(self, name: str) -> Device | None:
        """Implement the protocol."""
        return self._keys.device(name)

    def blocked(self, device: str) -> str | None:
        """Implement the protocol."""
        return self._ledger.blocked().get(device)

    def round(self, number: int) -> Round:
        """Implement the protocol."""
        return self._round(number)

    def start(self, number: int) -> Mapping[str, Array]:
        """Implement the protocol."""
        return self._start(number)

    def accepted(self, sha256: str) -> Entry | None:
        """Implement the protocol."""
        return self._ledger.find(sha256)

    def signed(self, device: str, sequence: int) -> str | None:
        """Implement the protocol."""
        return self._ledger.signed(device, sequence)

    def _read_start(self, number: int) -> Mapping[str, Array]:
        return read_tensors(self._workspace.adapter(number)).tensors
