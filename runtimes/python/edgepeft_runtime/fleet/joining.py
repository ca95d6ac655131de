"""``join``: fetch the newest round, verify it, try it, and only then switch to it (section 8.4 of the SPEC)."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.bundle import ADAPTER, Bundle
from edgepeft_runtime.bundle.manifest import Manifest, TensorSpec
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.data.values import first_not_finite
from edgepeft_runtime.errors import EdgepeftError, FleetError
from edgepeft_runtime.files.durable import move, sync_file, write_atomically
from edgepeft_runtime.files.tensorfile import Array, sha256_of
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.history import remember
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.reading import untrusted
from edgepeft_runtime.fleet.rounds import Head, HeadSignatures, Round
from edgepeft_runtime.fleet.slots import RUNS, DeviceHome, Slot, Trusted
from edgepeft_runtime.fleet.transports.remote import connected
from edgepeft_runtime.fleet.transports.transport import Transport, fetch, read
from edgepeft_runtime.train.checkpoint import remove_state
from edgepeft_runtime.train.trainer import Trainer

_HEADER_BYTES = 2**24
"""Room for the names of tensors, beside their values."""


@dataclass(frozen=True)
class Joined:
    """What :func:`join` found.

    Attributes:
        round: the round whose adapter is in use now.
        adapter: its file.
        switched: whether it is another one than before.
        advice: what the device could not be sure of, for people; ``None``: nothing.
    """

    round: Round
    adapter: Path
    switched: bool
    advice: str | None = None


def join(
    remote: str | Path | Transport,
    bundle: str | Path | Bundle,
    home: str | Path | DeviceHome,
    *,
    batch: Batch | None = None,
    now: float | None = None,
    ca_file: str | Path | None = None,
) -> Joined:
    """Bring the newest round of a fleet to this device, and switch to its adapter if it is good.

    Args:
        remote: a folder, or an ``http(s)://`` address.
        bundle: the campaign's bundle.
        home: where the device keeps its identity and its slots.
        batch: inputs to try the adapter with; ``None`` takes zeros.
        now: seconds since 1970; ``None`` asks the clock.
        ca_file: certificates to trust instead of the system's, for ``https://``.

    Raises:
        FleetError: the round is not signed by the host, older than one that was trusted before, expired, damaged, of
            another bundle, or its adapter does not work. The device goes on with what it had.
        BundleError: the bundle is damaged.
    """
    home = home if isinstance(home, DeviceHome) else DeviceHome(home)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    identity = home.identity()
    with home.locked(), connected(remote, identity.token, ca_file) as there:
        trusted = home.mended()  # so that the slot to be written to is the damaged one
        head, content, seal = _head(there, identity)
        _check_order(head, trusted)
        advice = _check_age(head, time.time() if now is None else now)
        if trusted is not None and head.round_sha256 in (trusted.current.round_sha256, trusted.failed):
            kept = _kept(home, head, trusted, advice)
            if kept is not None:
                return kept
        number = _round(there, head, trusted)
        number.check_bundle(bundle.manifest)
        slot = home.spare(trusted)
        _fill(there, slot, number, bundle)
        for name, value in ((rounds.HEAD_FILE, content), (rounds.HEAD_SIGNATURES, seal)):
            write_atomically(slot / name, [value], error=FleetError)
        write_atomically(slot / rounds.ROUND_FILE, [number.to_bytes()], error=FleetError)
        adapter = slot / rounds.ADAPTER_FILE
        check_health(bundle, adapter, batch)
        remember(home.path, number)
        _switch(home, head, trusted, slot.name)
    return Joined(number, adapter, True, advice)


def _head(place: Transport, identity: Identity) -> tuple[Head, bytes, bytes]:
    """The head, if the host has signed it for this campaign; and the two files."""
    # The head first: its signatures are written before it, so whoever has it finds them.
    content = read(place, rounds.HEAD_FILE, rounds.MAX_HEAD_BYTES)
    seal = read(place, rounds.HEAD_SIGNATURES, rounds.MAX_SIGNATURES_BYTES)
    HeadSignatures.from_bytes(seal).check(content, identity.host_key)
    head = Head.from_bytes(content)
    if head.campaign != identity.campaign:
        raise FleetError(
            "foreign-campaign",
            "The place belongs to another campaign.",
            context=f"campaign of the place {head.campaign}, of this device {identity.campaign}",
            hint="check the address.",
        )
    return head, content, seal


def _check_order(head: Head, trusted: Trusted | None) -> None:
    """The trusted round never goes backwards, and no round is ever replaced by another of its number."""
    if trusted is None:
        return
    if trusted.campaign != head.campaign:
        raise FleetError(
            "foreign-campaign",
            "This home belongs to another campaign.",
            context=f"campaign of the place {head.campaign}, of the home {trusted.campaign}",
            hint="use another home.",
        )
    if head.round < trusted.round:
        raise FleetError(
            "round-goes-back",
            f"The place is at round {head.round}; this device was at round {trusted.round} already.",
            context=f"at {head.round_sha256}",
            hint="the place is out of date; a host that takes a round back publishes a new one.",
        )
    if head.round == trusted.round and head.round_sha256 != trusted.round_sha256:
        raise _rewritten(head.round, trusted.round_sha256, head.round_sha256)


def _check_age(head: Head, now: float) -> str | None:
    """Refuse an expired head; where the clock cannot be right, say so instead."""
    if now < head.created:
        return "the clock is behind the round; whether it has expired is not known."
    if head.expires is not None and now >= head.expires:
        raise FleetError(
            "expired-head",
            f"Round {head.round} expired: a newer one may have been kept from this device.",
            context=f"expired {now - head.expires:.0f} s ago, by this device's clock",
            hint="check the clock; ask the host to publish again; go on with the adapter that is there.",
        )
    return None


def _kept(home: DeviceHome, head: Head, trusted: Trusted, advice: str | None) -> Joined | None:
    """The adapter that is there, if it is the round's already, or if the round has failed here before."""
    found = home.whole(trusted.current)
    if found is None:
        return None
    if head.round_sha256 == trusted.failed:
        advice = f"round {head.round} failed on this device; it waits for the next one."
    return Joined(found.round, found.adapter, False, advice)


def _round(place: Transport, head: Head, trusted: Trusted | None) -> Round:
    name = f"{rounds.folder(head.round)}/{rounds.ROUND_FILE}"
    content = read(place, name, rounds.MAX_ROUND_BYTES)
    if signatures.sha256(content) != head.round_sha256:
        raise _wrong_hash(name, head.round_sha256, signatures.sha256(content))
    found = Round.from_bytes(content)
    if (found.campaign, found.round) != (head.campaign, head.round):
        raise untrusted("round")(f"{name} is of another round.", f"{found.campaign}, round {found.round}")
    if trusted is not None and found.round == trusted.round + 1 and found.previous != trusted.round_sha256:
        raise _rewritten(trusted.round, trusted.round_sha256, str(found.previous))
    return found


def _fill(place: Transport, slot: Path, number: Round, bundle: Bundle) -> None:
    """Bring the adapter into the slot; what an earlier try has fetched of it is used."""
    most = bundle.manifest.files[ADAPTER].bytes + _HEADER_BYTES
    if number.adapter.bytes > most:
        context = f"{number.adapter.bytes} bytes; at most {most} fit this bundle"
        raise FleetError("too-large", "The adapter is larger than one of this bundle.", context=context, hint=None)
    name = f"{rounds.folder(number.round)}/{rounds.ADAPTER_FILE}"
    partial, whole = slot / f"{number.adapter.sha256}.partial", slot / rounds.ADAPTER_FILE
    if whole.exists() and sha256_of(whole) == number.adapter.sha256:  # it was fetched, and then did not come into use
        os.replace(whole, partial)
    for old in slot.iterdir():
        if old != partial:
            old.unlink()
    begun = partial.exists()
    try:
        _fetch(place, name, partial, number)
    except FleetError as failure:
        if failure.reference != "wrong-hash" or not begun:
            raise
        _fetch(place, name, partial, number)  # what an earlier try had left was no good
    move(partial, whole)


def _fetch(place: Transport, name: str, partial: Path, number: Round) -> None:
    fetch(place, name, partial, number.adapter.bytes)
    found = sha256_of(partial)
    if found != number.adapter.sha256:
        partial.unlink()
        raise _wrong_hash(name, number.adapter.sha256, found)
    sync_file(partial)


def check_health(bundle: Bundle, adapter: Path, batch: Batch | None = None) -> None:
    """Refuse an adapter that the bundle does not take, or with which a prediction is not finite.

    Args:
        bundle: the bundle, opened.
        adapter: the file to try.
        batch: inputs to try it with. Without them zeros are fed, and an adapter is refused only if the bundle's own
            one does better on those.

    Raises:
        FleetError: it does not work (``unhealthy-adapter``).
    """
    with Trainer.open(bundle) as trainer:
        inputs = probe(bundle.manifest) if batch is None else batch
        failure = _trouble(trainer, inputs, adapter)
        if failure is None or (batch is None and _trouble(trainer, inputs, None) is not None):
            return
    raise FleetError(
        "unhealthy-adapter",
        "The round's adapter does not work on this device.",
        context=failure,
        hint="the device goes on with the adapter it has; tell the host.",
    )


def _trouble(trainer: Trainer, inputs: Batch, adapter: Path | None) -> str | None:
    """What goes wrong with an adapter, ``None``: nothing."""
    try:
        outputs = trainer.predict(inputs, adapter=adapter)
    except EdgepeftError as failure:
        return f"{failure.message} {failure.context or ''}".strip()
    except Exception as failure:  # onnxruntime's errors have no class of their own
        return str(failure)
    places = {name: first_not_finite(array) for name, array in outputs.items()}
    return next((f"output {name!r} at {list(at)} is not finite" for name, at in places.items() if at is not None), None)


def probe(manifest: Manifest) -> dict[str, Array]:
    """The smallest inputs: zeros, and ones for a mask of what is read."""
    kinds = manifest.text.fields if manifest.text is not None else {}
    return {spec.name: _smallest(spec, manifest, kinds.get(spec.name) == "attention_mask") for spec in manifest.inputs}


def _smallest(spec: TensorSpec, manifest: Manifest, is_mask: bool) -> Array:
    shape = [max(1, manifest.dimensions[dim].min) if isinstance(dim, str) else dim for dim in spec.shape]
    return np.full(shape, 1 if is_mask else 0, spec.dtype)


def _switch(home: DeviceHome, head: Head, trusted: Trusted | None, slot: str) -> None:
    previous = None
    if trusted is not None and home.whole(trusted.current) is not None:
        previous = trusted.current
    current = Slot(slot, head.round, head.round_sha256)
    home.trust(Trusted(head.campaign, head.round, head.round_sha256, current, previous))
    kept = {rounds.folder(kept.round) for kept in (current, previous) if kept is not None}
    with suppress(OSError):
        for run in (home.path / RUNS).iterdir():
            if run.name not in kept:
                remove_state(run)


def _wrong_hash(name: str, expected: str, found: str) -> FleetError:
    return FleetError(
        "wrong-hash",
        f"{name} is not what the host has signed.",
        context=f"expected SHA-256 {expected}, found {found}",
        hint="try again later, it may be half copied; if it stays so, do not use this place.",
    )


def _rewritten(number: int, here: str, there: str) -> FleetError:
    return FleetError(
        "round-differs",
        f"The place has another round {number} than this device was given.",
        context=f"here {here}\nthere {there}",
        hint="tell the host: its history was rewritten.",
    )
