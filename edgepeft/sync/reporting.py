"""The status of a fleet: its rounds, devices and refusals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from edgepeft.sync.keys import Keys
from edgepeft.sync.ledger import Ledger
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.fleet.rounds import Latest, Round


@dataclass(frozen=True)
class RoundStatus:
    """A round, and how many updates have arrived for it."""

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
    """A device: ``state`` is ``active``, ``revoked`` or ``blocked``, ``last`` its latest acceptance."""

    device: str
    algorithm: str
    state: str
    updates: int
    round: int | None
    last: int | None


@dataclass(frozen=True)
class Status:
    """The status of a fleet; ``refused`` counts files by code."""

    campaign: str
    host_key: str
    latest: Latest | None
    rounds: tuple[RoundStatus, ...]
    devices: tuple[DeviceStatus, ...]
    refused: dict[str, int]

    def to_dict(self) -> dict[str, object]:
        """Return the status as JSON values."""
        return asdict(self)


def status(workspace: str | Path | Workspace) -> Status:
    """Return the status of a host's workspace, without changing it.

    Raises:
        SyncError: It has no key.
    """
    workspace = Workspace.of(workspace)
    keys, latest = Keys(workspace), workspace.latest()
    host = keys.host()
    with Ledger(workspace.ledger) as ledger:
        counts, blocked, refused = ledger.counts(), ledger.blocked(), ledger.refusals()
        devices = tuple(
            _device(device.device, device.algorithm, device.state, ledger, blocked) for device in keys.devices()
        )
    last = 0 if latest is None else latest.round
    rounds = tuple(_round(workspace.round(i), *counts.get(i, (0, 0))) for i in range(1, last + 1))
    return Status(host.campaign, host.public.hex(), latest, rounds, devices, refused)


def _round(round_: Round, updates: int, devices: int) -> RoundStatus:
    return RoundStatus(
        round=round_.round,
        restores=round_.restores,
        adapter_sha256=round_.adapter.sha256,
        created=round_.created,
        expires=round_.expires,
        updates=updates,
        devices=devices,
        min_devices=round_.min_devices,
    )


def _device(name: str, algorithm: str, state: str, ledger: Ledger, blocked: dict[str, str]) -> DeviceStatus:
    updates, newest, last = ledger.last(name) or (0, None, None)
    return DeviceStatus(name, algorithm, "blocked" if name in blocked else state, updates, newest, last)
