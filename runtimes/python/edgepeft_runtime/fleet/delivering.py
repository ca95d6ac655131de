"""``deliver``: leave an update at a place, signed, its sidecar last (section 8.3 of the SPEC)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.errors import FleetError, UpdateError
from edgepeft_runtime.files.durable import make_folder, write_atomically
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import MAX_SIDECAR_BYTES, SIDECAR_SUFFIX, UPDATE_SUFFIX, Delivery
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.rounds import Round
from edgepeft_runtime.fleet.slots import DeviceHome
from edgepeft_runtime.fleet.transports.remote import connected
from edgepeft_runtime.fleet.transports.transport import MISSING, Transport, read
from edgepeft_runtime.train.update import read_update

OUTBOX, SEQUENCE = "outbox", "sequence"


@dataclass(frozen=True)
class Delivered:
    """What :func:`deliver` did: the sidecar, and whether the place had it already."""

    delivery: Delivery
    repeated: bool


def deliver(
    update: str | Path,
    remote: str | Path | Transport,
    home: str | Path | DeviceHome,
    *,
    ca_file: str | Path | None = None,
) -> Delivered:
    """Leave an update at a remote. Repeating it does nothing, also where an earlier attempt was interrupted.

    Args:
        update: what ``save_update`` wrote, trained from a round that this device has joined.
        remote: a folder, or an ``http(s)://`` address.
        home: where the device keeps its identity and its slots.
        ca_file: certificates to trust instead of the system's, for ``https://``.

    Raises:
        UpdateError: the update is damaged.
        FleetError: it is of no round that this device knows, larger than the round allows, or the place cannot be
            reached.
    """
    home = home if isinstance(home, DeviceHome) else DeviceHome(home)
    content, started_from = _checked(update)
    with home.locked():
        identity = home.identity()
        sidecar = _sidecar(home, identity, content, started_from)
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
    except FleetError as failure:
        if failure.reference != MISSING:
            raise
        return False


def _checked(path: str | Path) -> tuple[bytes, str]:
    """The bytes of an update, which is whole, and the hash of the adapter it started from."""
    started_from = read_update(path).adapter_sha256
    try:
        return Path(path).read_bytes(), started_from
    except OSError as failure:
        raise UpdateError("cannot-read-file", f"Cannot read {path}.", context=str(failure), hint=None) from failure


def _sidecar(home: DeviceHome, identity: Identity, content: bytes, started_from: str) -> Delivery:
    """The sidecar of an update: the one of an earlier try, or a new one under the next sequence number."""
    digest = signatures.sha256(content)
    kept = home.path / OUTBOX / f"{digest}{SIDECAR_SUFFIX}"
    if kept.exists():
        return Delivery.from_bytes(kept.read_bytes())
    number = _round(home, started_from)
    if len(content) > number.limits.update_bytes:
        raise FleetError(
            "too-large",
            "The update is larger than the round allows.",
            context=f"{len(content)} bytes; at most {number.limits.update_bytes}",
            hint="nothing on this device helps; tell the host.",
        )
    bare = Delivery(
        identity.campaign, number.round, identity.device, _next(home), digest, len(content), identity.algorithm
    )
    sidecar = bare.signed(identity.key)
    make_folder(kept.parent)
    write_atomically(kept, [sidecar.to_bytes()], error=FleetError)
    return sidecar


def _round(home: DeviceHome, started_from: str) -> Round:
    known = list(home.known())
    found = next((number for number in known if number.adapter.sha256 == started_from), None)
    if found is None:
        rounds = ", ".join(f"{number.round} ({number.adapter.sha256})" for number in known) or "none"
        raise FleetError(
            "unknown-round",
            "The update was not trained from a round that this device has.",
            context=f"it started from the adapter {started_from}\nrounds here: {rounds}",
            hint="train with `edgepeft train --home`; an update of an older round comes too late.",
        )
    return found


def _next(home: DeviceHome) -> int:
    """The next sequence number. It is used up before it is signed: a crash leaves a gap, and never one number twice."""
    path = home.path / SEQUENCE
    try:
        number = int(path.read_text("ascii")) + 1 if path.exists() else 1
    except (OSError, ValueError) as failure:
        raise FleetError(
            "damaged-home",
            f"{path} does not hold a number.",
            context=str(failure),
            hint="register the device anew; to count from 1 again would look like fraud to the host.",
        ) from failure
    write_atomically(path, [str(number).encode()], error=FleetError)
    return number
