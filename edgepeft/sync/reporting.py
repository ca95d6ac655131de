"""What a fleet has published and received, for people and scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepeft.sync.keys import Keys
from edgepeft.sync.ledger import Ledger
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.fleet.rounds import Latest


@dataclass(frozen=True)
class RoundStatus:
    """A round, and how much has come in for it."""

    round: int
    restores: int | None
    adapter_sha256: str
    created: int
    expires: int | None
    updates: int
    devices: int
    min_devices: int


@dataclass(frozen=True)
class DeviceStatus:
    """A device: ``state`` is ``active``, ``revoked`` or ``blocked``, ``last`` when its newest update was accepted."""

    device: str
    algorithm: str
    state: str
    updates: int
    round: int | None
    last: int | None


@dataclass(frozen=True)
class Status:
    """What :func:`status` found."""

    campaign: str
    host_key: str
    latest: Latest | None
    rounds: tuple[RoundStatus, ...]
    devices: tuple[DeviceStatus, ...]
    refused: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def status(workspace: str | Path | Workspace) -> Status:
    """Look at a host's workspace; changes nothing.

    Raises:
        SyncError: it has no key.
    """
    workspace = Workspace.of(workspace)
    keys, latest = Keys(workspace), workspace.latest()
    host = keys.host()
    with Ledger(workspace.ledger) as ledger:
        counts, blocked, refused = ledger.counts(), ledger.blocked(), ledger.refusals()
        devices = tuple(
            _device(device.device, device.algorithm, device.state, ledger, blocked) for device in keys.devices()
        )
    numbers = range(1, latest.round + 1) if latest is not None else ()
    found = tuple(_round(workspace, number, *counts.get(number, (0, 0))) for number in numbers)
    return Status(host.campaign, host.public.hex(), latest, found, devices, refused)


def _round(workspace: Workspace, number: int, updates: int, devices: int) -> RoundStatus:
    found = workspace.round(number)
    return RoundStatus(
        number,
        found.restores,
        found.adapter.sha256,
        found.created,
        found.expires,
        updates,
        devices,
        found.min_devices,
    )


def _device(name: str, algorithm: str, state: str, ledger: Ledger, blocked: dict[str, str]) -> DeviceStatus:
    updates, number, last = ledger.last(name) or (0, None, None)
    return DeviceStatus(name, algorithm, "blocked" if name in blocked else state, updates, number, last)
