"""The rules that decide whether a delivered update is accepted, in order and without I/O (section 8.3 of the SPEC).

Each rule has codes, and the first failing rule decides. Point 4 of the section lists them all:

1. The hash of the content is its name: ``wrong-hash``.
2. The sidecar is in canonical form, signed by a registered device in good standing, and belongs to this file and this
   address: ``bad-sidecar``, ``unknown-device``, ``bad-signature``, ``revoked-device``, ``blocked-device``,
   ``wrong-address``.
3. It is of this campaign and of a published round: ``foreign-campaign``, ``future-update``.
4. The content is an update that started from that round's adapter: the checks of ``edgepeft.intake.checks``.
5. The change is no larger than allowed, unless larger ones are clipped: ``norm-too-large``.
6. The ledger has neither this content under another name nor another content under this sequence number: ``replayed``,
   ``equivocation``.
7. It is not too late: ``stale-update``, ``expired-round``.

Names, folders, kinds and sizes of files are checked earlier, where files are opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgepeft.intake.checks import check_norm, checked
from edgepeft.sync.errors import (
    BlockedDevice,
    Equivocation,
    ExpiredRound,
    FutureUpdate,
    Replayed,
    RevokedDevice,
    WrongAddress,
)
from edgepeft.sync.keys import ACTIVE, Device
from edgepeft.sync.ledger import Entry
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import (
    ForeignCampaign,
    NotAnUpdate,
    StaleUpdate,
    UnknownDevice,
    WrongHash,
)
from edgepeft_runtime.files.canonical import LARGEST
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import UPDATE_SUFFIX, Delivery
from edgepeft_runtime.fleet.rounds import CLIP, Round
from edgepeft_runtime.train.update import Update


@dataclass(frozen=True)
class Address:
    """The address of an update in a remote, which names its round, device and hash."""

    round: int
    device: str
    sha256: str


@dataclass(frozen=True)
class Delivered:
    """An update as delivered: its address, the bytes of the file, and those of its sidecar."""

    address: Address
    content: bytes
    sidecar: bytes


class Facts(Protocol):
    """The host's knowledge. A look-up may read a file of the host, but the rules see only its result.

    Attributes:
        now: Seconds since 1970.
        newest: The newest round.
        manifest: The manifest of the campaign's bundle.
    """

    now: float
    newest: Round
    manifest: Manifest

    def device(self, name: str) -> Device | None:
        """Return a registered device."""

    def blocked(self, device: str) -> str | None:
        """Return the reason why a device is blocked, if it is."""

    def round(self, number: int) -> Round:
        """Return a published round."""

    def start(self, number: int) -> Mapping[str, Array]:
        """Return the adapter of a published round."""

    def accepted(self, sha256: str) -> Entry | None:
        """Return the entry of an update that was accepted before."""

    def signed(self, device: str, sequence: int) -> str | None:
        """Return the hash of the update that a device has delivered under a sequence number."""


def verify(delivered: Delivered, facts: Facts) -> Entry:
    """Return the ledger's entry for a good update.

    Raises:
        UpdateError, FleetError: The first rule that it breaks; see the docstring of this module.
    """
    delivery = _delivery(delivered, facts)
    round_ = _round(delivery, facts)
    update = _update(delivered, round_, facts.manifest)
    norm = change_norm(update.parameters, facts.start(round_.round))
    scale = _scale(norm, round_)
    _check_ledger(delivery, facts)
    return Entry(
        sha256=delivery.sha256,
        round=delivery.round,
        device=delivery.device,
        sequence=delivery.sequence,
        size=delivery.size,
        norm=norm,
        scale=scale,
        staleness=_staleness(round_, facts),
        num_examples=update.num_examples,
        steps=update.steps,
        loss_before=update.loss_before,
        loss_after=update.loss_after,
        accepted=int(facts.now),
    )


def _delivery(delivered: Delivered, facts: Facts) -> Delivery:
    """Return the sidecar, if a registered device in good standing has signed it for this file at this address."""
    digest, size = signatures.sha256(delivered.content), len(delivered.content)
    if digest != delivered.address.sha256:
        raise WrongHash("The update does not match its name.", context=f"its SHA-256 is {digest}", hint=None)
    delivery = Delivery.from_bytes(delivered.sidecar)
    device = facts.device(delivery.device)
    if device is None:
        raise UnknownDevice(f"No device {delivery.device} is registered.", context=None, hint=None)
    delivery.check(device.algorithm, device.key)
    if device.state != ACTIVE:
        raise RevokedDevice(f"The device {delivery.device} is revoked.", context=None, hint=None)
    reason = facts.blocked(delivery.device)
    if reason is not None:
        raise BlockedDevice(f"The device {delivery.device} is blocked.", context=reason, hint=None)
    named = Address(delivery.round, delivery.device, delivery.sha256)
    if named != delivered.address or delivery.size != size:
        context = f"the sidecar names {named}, {delivery.size} bytes\nit came at {delivered.address}, {size} bytes"
        message = "The sidecar belongs to another update, or to another address."
        raise WrongAddress(message, context=context, hint=None)
    return delivery


def _round(delivery: Delivery, facts: Facts) -> Round:
    """Return the round of a delivery, if it is of this campaign, and published."""
    if delivery.campaign != facts.newest.campaign:
        context = f"campaign of the sidecar {delivery.campaign}, of this host {facts.newest.campaign}"
        raise ForeignCampaign("The update belongs to another campaign.", context=context, hint=None)
    if delivery.round > facts.newest.round:
        message = "The update is of a round that was not published."
        context = f"round of the update {delivery.round}; the newest is {facts.newest.round}"
        raise FutureUpdate(message, context=context, hint=None)
    return facts.round(delivery.round)


def _update(delivered: Delivered, round_: Round, manifest: Manifest) -> Update:
    name = f"{delivered.address.sha256}{UPDATE_SUFFIX}"
    update = checked(delivered.content, name, manifest, round_.adapter.sha256)
    if max(update.num_examples, update.steps) > LARGEST:
        message = "The update counts more examples or steps than there can be."
        raise NotAnUpdate(message, context=f"at most {LARGEST}", hint=None)
    return update


def _scale(norm: float, round_: Round) -> float:
    """Return the factor that scales a change down to the allowed norm; 1 if it is small enough."""
    most = math.inf if round_.max_update_norm is None else round_.max_update_norm
    check_norm(norm, math.inf if round_.norm_action == CLIP else most)
    return min(1.0, most / norm) if norm else 1.0


def _check_ledger(delivery: Delivery, facts: Facts) -> None:
    signed = facts.signed(delivery.device, delivery.sequence)
    if signed is not None and signed != delivery.sha256:
        raise Equivocation(
            "The device has signed two updates under one sequence number; it is blocked.",
            context=f"update {delivery.sequence} of {delivery.device} is {signed}, and now {delivery.sha256}",
            hint=None,
        )
    entry = facts.accepted(delivery.sha256)
    here = (delivery.device, delivery.round, delivery.sequence)
    if entry is not None and (entry.device, entry.round, entry.sequence) != here:
        raise Replayed(
            "The same update was accepted before, under another name.",
            context=f"it is update {entry.sequence} of {entry.device}, round {entry.round}",
            hint=None,
        )


def _staleness(round_: Round, facts: Facts) -> int:
    """Return the number of rounds since an update's own, if it is not too late."""
    staleness, most = facts.newest.round - round_.round, facts.newest.max_staleness
    if staleness > most:
        message = f"The update of round {round_.round} comes too late."
        context = f"it started {staleness} rounds ago; at most {most} are accepted"
        raise StaleUpdate(message, context=context, hint=None)
    if round_.expires is not None and facts.now >= round_.expires:
        context = f"{facts.now - round_.expires:.0f} s ago"
        raise ExpiredRound(f"Round {round_.round} has expired.", context=context, hint=None)
    return staleness


def change_norm(parameters: Mapping[str, Array], start: Mapping[str, Array]) -> float:
    """Return the L2 norm of the changes of all floats together, in float64; infinite if it overflows."""
    total = 0.0
    with np.errstate(over="ignore"):
        for name, value in parameters.items():
            if value.dtype.kind == "f":
                change = value.astype(np.float64).ravel() - start[name].astype(np.float64).ravel()
                total += float(change @ change)
    return math.sqrt(total) if math.isfinite(total) else math.inf
