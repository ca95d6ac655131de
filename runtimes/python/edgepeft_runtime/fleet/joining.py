"""``join``: bring the latest round to this device. The reads and writes around the rules of ``trust``."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.errors import EdgepeftError, NoBundle
from edgepeft_runtime.files.durable import move, write_atomically
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet import rounds
from edgepeft_runtime.fleet.device_directory import RUNS, DeviceDirectory
from edgepeft_runtime.fleet.fetching import fetch_bundle, fetch_manifest, fetch_verified
from edgepeft_runtime.fleet.health import check_health
from edgepeft_runtime.fleet.history import remember
from edgepeft_runtime.fleet.rounds import Latest, Round
from edgepeft_runtime.fleet.transports.remote import connected
from edgepeft_runtime.fleet.transports.transport import Transport, read
from edgepeft_runtime.fleet.trust import Slot, Trusted, Verifier, check_bundle, check_size
from edgepeft_runtime.train.checkpoint import remove_state

_LATEST = {rounds.LATEST_FILE: rounds.MAX_LATEST_BYTES, rounds.LATEST_SIGNATURES: rounds.MAX_SIGNATURES_BYTES}


@dataclass(frozen=True)
class Joined:
    """The result of ``join``.

    Attributes:
        round: the round whose adapter is in use now.
        adapter: its file.
        switched: whether it is another one than before.
        bundle: the folder of the bundle that was fetched, ``None`` where it was given.
        advice: message about a check that the device could not make; ``None`` if there was none.
    """

    round: Round
    adapter: Path
    switched: bool
    bundle: Path | None = None
    advice: str | None = None


def join(
    remote: str | Path | Transport,
    device: str | Path | DeviceDirectory,
    bundle: str | Path | Bundle | None = None,
    *,
    batch: Batch | None = None,
    now: float | None = None,
    ca_file: str | Path | None = None,
) -> Joined:
    """Bring the latest round of a fleet to this device, and switch to its adapter and bundle if they work.

    Files, and parts of files, that are there already are not fetched again.

    Args:
        remote: a folder, or an ``http(s)://`` address.
        device: the device directory, with the device's identity and its slots.
        bundle: the campaign's bundle, where it was brought here by other means; ``None``: the one that the round names.
        batch: inputs to try the adapter with; ``None`` uses zeros.
        now: seconds since 1970; ``None`` reads the clock.
        ca_file: certificates to trust instead of the system's, for ``https://``.

    Raises:
        FleetError: the round is not signed by the host, older than one that was trusted before, expired, damaged, of
            another bundle, or does not work. The device keeps its round.
        RemoteError: the remote cannot be reached, or lacks a file.
        BundleError: the bundle is damaged, or needs another onnxruntime.
    """
    device = DeviceDirectory.of(device)
    given = Bundle.open(bundle) if isinstance(bundle, str | Path) else bundle
    identity = device.identity()
    with device.locked(), connected(remote, identity.token, ca_file) as transport:
        trusted = device.recovered()  # so that the slot to be written to is the damaged one
        verifier = Verifier(identity.campaign, identity.host_key, trusted)
        # latest.json is read first: its signatures are written before it, so they exist when it does.
        files = {name: read(transport, name, most) for name, most in _LATEST.items()}
        content, signed = files[rounds.LATEST_FILE], files[rounds.LATEST_SIGNATURES]
        latest, advice = verifier.latest(content, signed, time.time() if now is None else now)
        unchanged = _unchanged(device, latest, trusted, advice, fetches=given is None)
        if unchanged is not None:
            if given is not None:
                check_bundle(unchanged.round, given.manifest)
            return unchanged
        folder = rounds.folder(latest.round)
        files[rounds.ROUND_FILE] = read(transport, f"{folder}/{rounds.ROUND_FILE}", rounds.MAX_ROUND_BYTES)
        round_ = verifier.round(files[rounds.ROUND_FILE], latest)
        its, fetched = (given, None) if given is not None else _bundle(transport, device, round_, trusted)
        check_bundle(round_, its.manifest)
        check_size(round_.adapter, its.adapter_bytes)
        slot = device.spare(trusted)
        _fetch_adapter(transport, f"{folder}/{rounds.ADAPTER_FILE}", slot, round_)
        for name, content in files.items():
            write_atomically(slot / name, [content])
        is_new = fetched is not None and (trusted is None or fetched != trusted.current.bundle)
        check_health(its, slot / rounds.ADAPTER_FILE, batch, is_new=is_new)
        remember(device.path, round_)
        _switch(device, latest, trusted, Slot(slot.name, latest.round, latest.round_sha256, fetched))
    return Joined(round_, slot / rounds.ADAPTER_FILE, True, None if fetched is None else its.path, advice)


def _unchanged(
    device: DeviceDirectory, latest: Latest, trusted: Trusted | None, advice: str | None, *, fetches: bool
) -> Joined | None:
    """Return the round in use if it is the latest one, or if the latest one has failed here before."""
    if trusted is None or latest.round_sha256 not in (trusted.current.round_sha256, trusted.failed):
        return None
    current = device.whole(trusted.current)
    if current is None:
        return None
    if latest.round_sha256 == trusted.failed:
        advice = f"round {latest.round} failed on this device; it waits for the next one."
    elif fetches and current.bundle is None and current.round.bundle is not None:
        return None  # it was joined with a bundle that was given then
    return Joined(current.round, current.adapter, False, current.bundle, advice)


def _bundle(
    transport: Transport, device: DeviceDirectory, round_: Round, trusted: Trusted | None
) -> tuple[Bundle, str]:
    """Return the round's bundle, fetched if it is not here or damaged, and the hash of its manifest.

    A round that names no bundle goes with the one in use.
    """
    entry, current = round_.bundle, None if trusted is None else trusted.current.bundle
    sha256 = current if entry is None else entry.sha256
    if sha256 is None:
        raise NoBundle(
            f"Round {round_.round} comes without a bundle, and this device has none.",
            context=None,
            hint="give --bundle, or publish the round --with-bundle.",
        )
    folder = device.bundles / sha256
    bundle = _opened(folder)
    if bundle is None and entry is not None:
        manifest = fetch_manifest(transport, entry, device.bundles)
        check_bundle(round_, manifest)  # before the large files are fetched
        fetch_bundle(transport, entry, manifest, device.bundles)
    return bundle or Bundle.open(folder), sha256


def _opened(folder: Path) -> Bundle | None:
    """Return a bundle if it is there, to the byte."""
    try:
        return Bundle.open(folder)
    except EdgepeftError:
        return None


def _fetch_adapter(transport: Transport, name: str, slot: Path, round_: Round) -> None:
    """Fetch the adapter into a slot, resuming an earlier attempt."""
    partial, whole = slot / f"{round_.adapter.sha256}.partial", slot / rounds.ADAPTER_FILE
    if whole.exists() and sha256_of(whole) == round_.adapter.sha256:  # it was fetched, and then did not come into use
        os.replace(whole, partial)
    for old in slot.iterdir():
        if old != partial:
            old.unlink()
    fetch_verified(transport, name, partial, round_.adapter)
    move(partial, whole)


def _switch(device: DeviceDirectory, latest: Latest, trusted: Trusted | None, current: Slot) -> None:
    """Switch to a slot; then remove runs and bundles that no slot needs any more."""
    previous = None
    if trusted is not None and device.whole(trusted.current) is not None:
        previous = trusted.current
    device.trust(Trusted(latest.campaign, latest.round, latest.round_sha256, current, previous))
    slots = [slot for slot in (current, previous) if slot is not None]
    device.remove_bundles(but={slot.bundle for slot in slots})
    in_use = {rounds.folder(slot.round) for slot in slots}
    with suppress(OSError):
        for run in (device.path / RUNS).iterdir():
            if run.name not in in_use:
                remove_state(run)
