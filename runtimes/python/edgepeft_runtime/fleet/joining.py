"""``join``: bring the latest round to this device. The reads and writes around the rules of :mod:`trust`."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.files.durable import move, write_atomically
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet import rounds
from edgepeft_runtime.fleet.device_directory import RUNS, DeviceDirectory
from edgepeft_runtime.fleet.fetching import fetch_verified
from edgepeft_runtime.fleet.health import check_health
from edgepeft_runtime.fleet.history import remember
from edgepeft_runtime.fleet.rounds import Latest, Round
from edgepeft_runtime.fleet.transports.remote import connected
from edgepeft_runtime.fleet.transports.transport import Transport, read
from edgepeft_runtime.fleet.trust import Slot, Trusted, Verifier, check_bundle, check_size
from edgepeft_runtime.train.checkpoint import remove_state


@dataclass(frozen=True)
class Joined:
    """The result of :func:`join`.

    Attributes:
        round: the round whose adapter is in use now.
        adapter: its file.
        switched: whether it is another one than before.
        advice: what the device could not verify, for people; ``None``: nothing.
    """

    round: Round
    adapter: Path
    switched: bool
    advice: str | None = None


def join(
    remote: str | Path | Transport,
    device: str | Path | DeviceDirectory,
    bundle: str | Path | Bundle,
    *,
    batch: Batch | None = None,
    now: float | None = None,
    ca_file: str | Path | None = None,
) -> Joined:
    """Bring the latest round of a fleet to this device, and switch to its adapter if it works.

    Args:
        remote: a folder, or an ``http(s)://`` address.
        device: the device directory, with the device's identity and its slots.
        bundle: the campaign's bundle.
        batch: inputs to try the adapter with; ``None`` takes zeros.
        now: seconds since 1970; ``None`` asks the clock.
        ca_file: certificates to trust instead of the system's, for ``https://``.

    Raises:
        FleetError: the round is not signed by the host, older than one that was trusted before, expired, damaged, of
            another bundle, or its adapter does not work. The device keeps what it had.
        BundleError: the bundle is damaged.
    """
    device = DeviceDirectory.of(device)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    identity = device.identity()
    with device.locked(), connected(remote, identity.token, ca_file) as transport:
        trusted = device.recovered()  # so that the slot to be written to is the damaged one
        verifier = Verifier(identity.campaign, identity.host_key, trusted)
        # latest.json first: its signatures are written before it, so whoever has it finds them.
        content = read(transport, rounds.LATEST_FILE, rounds.MAX_LATEST_BYTES)
        signed = read(transport, rounds.LATEST_SIGNATURES, rounds.MAX_SIGNATURES_BYTES)
        latest, advice = verifier.latest(content, signed, time.time() if now is None else now)
        unchanged = _unchanged(device, latest, trusted, advice)
        if unchanged is not None:
            return unchanged
        folder = rounds.folder(latest.round)
        round_ = verifier.round(read(transport, f"{folder}/{rounds.ROUND_FILE}", rounds.MAX_ROUND_BYTES), latest)
        check_bundle(round_, bundle.manifest)
        check_size(round_.adapter, bundle.adapter_bytes)
        slot = device.spare(trusted)
        _fetch_adapter(transport, f"{folder}/{rounds.ADAPTER_FILE}", slot, round_)
        files = {rounds.LATEST_FILE: content, rounds.LATEST_SIGNATURES: signed, rounds.ROUND_FILE: round_.to_bytes()}
        for name, value in files.items():
            write_atomically(slot / name, [value])
        check_health(bundle, slot / rounds.ADAPTER_FILE, batch)
        remember(device.path, round_)
        _switch(device, latest, trusted, slot.name)
    return Joined(round_, slot / rounds.ADAPTER_FILE, True, advice)


def _unchanged(device: DeviceDirectory, latest: Latest, trusted: Trusted | None, advice: str | None) -> Joined | None:
    """Return the adapter in use if it is the latest round's already, or if that round has failed here before."""
    if trusted is None or latest.round_sha256 not in (trusted.current.round_sha256, trusted.failed):
        return None
    current = device.whole(trusted.current)
    if current is None:
        return None
    if latest.round_sha256 == trusted.failed:
        advice = f"round {latest.round} failed on this device; it waits for the next one."
    return Joined(current.round, current.adapter, False, advice)


def _fetch_adapter(transport: Transport, name: str, slot: Path, round_: Round) -> None:
    """Bring the adapter into a slot, without fetching again what an earlier attempt has left there."""
    partial, whole = slot / f"{round_.adapter.sha256}.partial", slot / rounds.ADAPTER_FILE
    if whole.exists() and sha256_of(whole) == round_.adapter.sha256:  # it was fetched, and then did not come into use
        os.replace(whole, partial)
    for old in slot.iterdir():
        if old != partial:
            old.unlink()
    fetch_verified(transport, name, partial, round_.adapter)
    move(partial, whole)


def _switch(device: DeviceDirectory, latest: Latest, trusted: Trusted | None, slot: str) -> None:
    previous = None
    if trusted is not None and device.whole(trusted.current) is not None:
        previous = trusted.current
    current = Slot(slot, latest.round, latest.round_sha256)
    device.trust(Trusted(latest.campaign, latest.round, latest.round_sha256, current, previous))
    kept = {rounds.folder(slot_.round) for slot_ in (current, previous) if slot_ is not None}
    with suppress(OSError):
        for run in (device.path / RUNS).iterdir():
            if run.name not in kept:
                remove_state(run)
