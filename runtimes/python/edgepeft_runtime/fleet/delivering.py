"""``deliver``: leave an update at a remote, signed, its sidecar last (section 8.3 of the SPEC)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.errors import (
    CannotReadFile,
    DamagedDeviceDirectory,
    NoSuchFile,
    TooLarge,
    UnknownRound,
)
from edgepeft_runtime.files.durable import make_folder, write_atomically
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import MAX_SIDECAR_BYTES, SIDECAR_SUFFIX, UPDATE_SUFFIX, Delivery
from edgepeft_runtime.fleet.device_directory import DeviceDirectory
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.rounds import Round
from edgepeft_runtime.fleet.transports.remote import connected
from edgepeft_runtime.fleet.transports.transport import Transport, read
from edgepeft_runtime.train.update import read_update

OUTBOX, SEQUENCE = "outbox", "sequence"


@dataclass(frozen=True)
class Delivered:
    """The result of ``deliver``: the sidecar, and whether the remote had it already."""

    delivery: Delivery
    repeated: bool


def deliver(
    update: str | Path,
    remote: str | Path | Transport,
    device: str | Path | DeviceDirectory,
    *,
    ca_file: str | Path | None = None,
) -> Delivered:
    """Leave an update at a remote. Repeating it does nothing, also where an earlier attempt was interrupted.

    Args:
        update: what ``save_update`` wrote, trained from a round that this device has joined.
        remote: a folder, or an ``http(s)://`` address.
        device: the device directory, with the device's identity and its slots.
        ca_file: certificates to trust instead of the system's, for ``https://``.

    Raises:
        UpdateError: the update is damaged.
        FleetError: it is of no round that this device knows, larger than the round allows, or the remote cannot be
            reached.
    """
    device = DeviceDirectory.of(device)
    content, started_from = _checked(update)
    with device.locked():
        identity = device.identity()
        sidecar = _sidecar(device, identity, content, started_from)
    name = f"{sidecar.folder}/{sidecar.sha256}"
    with connected(remote, identity.token, ca_file) as transport:
        if _is_there(transport, f"{name}{SIDECAR_SUFFIX}", sidecar.to_bytes()):
            return Delivered(sidecar, True)
        transport.put(f"{name}{UPDATE_SUFFIX}", content)
        transport.put(f"{name}{SIDECAR_SUFFIX}", sidecar.to_bytes())
    return Delivered(sidecar, False)


def _is_there(transport: Transport, name: str, content: bytes) -> bool:
    try:
        return read(transport, name, MAX_SIDECAR_BYTES) == content
    except NoSuchFile:
        return False


def _checked(path: str | Path) -> tuple[bytes, str]:
    """Return the bytes of a whole update, and the hash of the adapter it started from."""
    started_from = read_update(path).adapter_sha256
    try:
        return Path(path).read_bytes(), started_from
    except OSError as failure:
        raise CannotReadFile(f"Cannot read {path}.", context=str(failure), hint=None) from failure


def _sidecar(device: DeviceDirectory, identity: Identity, content: bytes, started_from: str) -> Delivery:
    """Return the sidecar of an update: the one of an earlier attempt, or a new one with the next sequence number."""
    digest = signatures.sha256(content)
    file = device.path / OUTBOX / f"{digest}{SIDECAR_SUFFIX}"
    if file.exists():
        return Delivery.from_bytes(file.read_bytes())
    round_ = _round(device, started_from)
    if len(content) > round_.limits.update_bytes:
        raise TooLarge(
            "The update is larger than the round allows.",
            context=f"{len(content)} bytes; at most {round_.limits.update_bytes}",
            hint="this device cannot fix it; inform the host.",
        )
    bare = Delivery(
        identity.campaign, round_.round, identity.device, _next(device), digest, len(content), identity.algorithm
    )
    sidecar = bare.signed(identity.key)
    make_folder(file.parent)
    write_atomically(file, [sidecar.to_bytes()])
    return sidecar


def _round(device: DeviceDirectory, started_from: str) -> Round:
    known = list(device.known())
    round_ = next((round_ for round_ in known if round_.adapter.sha256 == started_from), None)
    if round_ is None:
        rounds = ", ".join(f"{round_.round} ({round_.adapter.sha256})" for round_ in known) or "none"
        raise UnknownRound(
            "The update was not trained from a round that this device has.",
            context=f"it started from the adapter {started_from}\nrounds here: {rounds}",
            hint="train with `edgepeft train --device`; an update of an older round comes too late.",
        )
    return round_


def _next(device: DeviceDirectory) -> int:
    """Return the next sequence number. It is recorded before it is used, so a crash never repeats a number."""
    path = device.path / SEQUENCE
    try:
        number = int(path.read_text("ascii")) + 1 if path.exists() else 1
    except (OSError, ValueError) as failure:
        raise DamagedDeviceDirectory(
            f"{path} does not contain a number.",
            context=str(failure),
            hint="register the device again; restarting the count at 1 would look like fraud to the host.",
        ) from failure
    write_atomically(path, [str(number).encode()])
    return number
