"""Whether an update may count: every check there is, in one order, each with a code (section 8.3 of the SPEC)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from edgepeft.sync.keys import ACTIVE, Keys
from edgepeft.sync.ledger import Entry, Ledger
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.bundle.bundle import checked_parameters
from edgepeft_runtime.errors import FleetError, UpdateError
from edgepeft_runtime.files.tensorfile import Array, read_tensors
from edgepeft_runtime.fleet.canonical import LARGEST
from edgepeft_runtime.fleet.delivery import Delivery
from edgepeft_runtime.fleet.rounds import CLIP, Round
from edgepeft_runtime.train.update import Update, read_update

MAX_HEADER_BYTES = 2**20
_PIECE = 2**20


@dataclass(frozen=True)
class Address:
    """Where an update lies in a place, which says what it should be: round, device, hash."""

    round: int
    device: str
    sha256: str


def copy_hashed(reader: IO[bytes], copy: Path, most: int) -> str:
    """Copy at most ``most`` bytes to a new file; returns their SHA-256."""
    digest, size = hashlib.sha256(), 0
    with copy.open("wb") as writer:
        while piece := _piece(reader):
            size += len(piece)
            if size > most:
                raise _refused("too-large", "The update is larger than it may be.", f"at most {most} bytes are taken")
            digest.update(piece)
            writer.write(piece)
    return digest.hexdigest()


class Verifier:
    """Judges deliveries to one host.

    Args:
        workspace: the host's workspace, with at least one round.
        ledger: what was accepted before.
        now: seconds since 1970.
    """

    def __init__(self, workspace: Workspace, ledger: Ledger, now: float) -> None:
        self._workspace, self._ledger, self._now = workspace, ledger, now
        self._newest = workspace.round(workspace.newest().round)
        self._manifest = workspace.bundle_manifest()
        self._keys = Keys(workspace)
        self._published = lru_cache(maxsize=16)(workspace.round)
        self._start = lru_cache(maxsize=4)(self._read_start)

    @property
    def most(self) -> int:
        """The bytes of the largest update that is looked at."""
        return self._newest.limits.update_bytes

    @property
    def oldest_open(self) -> int:
        """The oldest round that updates are taken of."""
        return self._newest.round - self._newest.max_staleness

    def judge(self, at: Address, found_sha256: str, copy: Path, sidecar: bytes) -> Entry:
        """Check a copy of an update that nobody else can change, and its sidecar.

        Args:
            at: what it should be, by where it lay.
            found_sha256: the hash of the copy.
            copy: the copy.
            sidecar: the bytes of the sidecar.

        Returns:
            Its entry for the ledger, which is not made yet.

        Raises:
            UpdateError, FleetError: the first check that fails; ``reference`` is its code.
        """
        if found_sha256 != at.sha256:
            raise _refused("wrong-hash", "The update is not what its name says.", f"its SHA-256 is {found_sha256}")
        delivery = self._signed(at, sidecar, copy.stat().st_size)
        number = self._round(delivery)
        update = self._update(copy, number)
        norm, scale = self._norm(update, number)
        self._check_ledger(delivery)
        staleness = self._check_time(number)
        return Entry(
            delivery.sha256,
            delivery.round,
            delivery.device,
            delivery.sequence,
            delivery.size,
            norm,
            scale,
            staleness,
            update.num_examples,
            update.steps,
            update.loss_before,
            update.loss_after,
            int(self._now),
        )

    def _signed(self, at: Address, sidecar: bytes, size: int) -> Delivery:
        """The sidecar, if a device that is registered, and in good standing, has signed it for this file here."""
        delivery = Delivery.from_bytes(sidecar)
        device = self._keys.device(delivery.device)
        if device is None:
            raise _refused("unknown-device", f"No device {delivery.device} is registered.", None)
        delivery.check(device.algorithm, device.key)
        if device.state != ACTIVE:
            raise _refused("revoked-device", f"The device {delivery.device} is revoked.", None)
        reason = self._ledger.blocked().get(delivery.device)
        if reason is not None:
            raise _refused("blocked-device", f"Nothing is taken of {delivery.device} any more.", reason)
        said = Address(delivery.round, delivery.device, delivery.sha256)
        if said != at or delivery.size != size:
            facts = f"the sidecar says {said}, {delivery.size} bytes\nit lies at {at}, {size} bytes"
            raise _refused("wrong-folder", "The sidecar belongs to another update or another place.", facts)
        return delivery

    def _round(self, delivery: Delivery) -> Round:
        """The round of a delivery, of this campaign, and published."""
        if delivery.campaign != self._newest.campaign:
            facts = f"campaign of the sidecar {delivery.campaign}, of this host {self._newest.campaign}"
            raise _refused("foreign-campaign", "The update belongs to another campaign.", facts)
        if delivery.round > self._newest.round:
            facts = f"round of the update {delivery.round}; the newest is {self._newest.round}"
            raise _refused("future-update", "The update is of a round that was not published.", facts)
        return self._published(delivery.round)

    def _update(self, copy: Path, number: Round) -> Update:
        """The update, if it started from the round's adapter and holds its tensors, with finite values."""
        _check_header(copy)
        update = read_update(copy)
        if max(update.num_examples, update.steps) > LARGEST:
            raise _refused("not-an-update", "The update counts more examples or steps than there can be.", None)
        if update.base_sha256 != number.base_sha256:
            facts = f"base of the update {update.base_sha256}\nbase of the round {number.base_sha256}"
            raise _refused("foreign-update", "The update was trained on another base.", facts)
        if update.adapter_sha256 != number.adapter.sha256:
            facts = f"adapter of the update {update.adapter_sha256}\nadapter of the round {number.adapter.sha256}"
            raise _refused("wrong-round", "The update did not start from the adapter of its round.", facts)
        checked_parameters(update.parameters, self._manifest, "The update", UpdateError)
        return update

    def _norm(self, update: Update, number: Round) -> tuple[float, float]:
        """The L2 norm of what the update changes, and what it is multiplied by so that it is no larger than allowed."""
        norm = change_norm(update.parameters, self._start(number.round))
        most = math.inf if number.max_update_norm is None else number.max_update_norm
        if math.isfinite(norm) and (norm <= most or number.norm_action == CLIP):
            return norm, min(1.0, most / norm) if norm else 1.0
        raise _refused("norm-too-large", "The update changes too much.", f"norm {norm:.6g}; at most {most:.6g}")

    def _check_ledger(self, delivery: Delivery) -> None:
        """Neither the same content again under another name, nor another content under the same number."""
        held = self._ledger.holder(delivery.device, delivery.sequence)
        if held is not None and held != delivery.sha256:
            facts = f"update {delivery.sequence} of {delivery.device} is {held}, and now {delivery.sha256}"
            self._ledger.block(delivery.device, facts)
            raise _refused("equivocation", "The device has signed two updates under one number; it is blocked.", facts)
        entry = self._ledger.find(delivery.sha256)
        if entry is None:
            return
        here = (delivery.device, delivery.round, delivery.sequence)
        if (entry.device, entry.round, entry.sequence) != here:
            facts = f"it is update {entry.sequence} of {entry.device}, round {entry.round}"
            raise _refused("replayed", "The same update was accepted before, under another name.", facts)

    def _check_time(self, number: Round) -> int:
        """How many rounds have passed; not too many, and not after the end."""
        staleness, most = self._newest.round - number.round, self._newest.max_staleness
        if staleness > most:
            facts = f"it started {staleness} rounds ago; at most {most} are taken"
            raise _refused("stale-update", f"The update of round {number.round} comes too late.", facts)
        if number.expires is not None and self._now >= number.expires:
            facts = f"{self._now - number.expires:.0f} s ago"
            raise _refused("expired-round", f"Round {number.round} has expired.", facts)
        return staleness

    def _read_start(self, number: int) -> dict[str, Array]:
        return read_tensors(self._workspace.adapter(number), error=FleetError).tensors


def change_norm(parameters: Mapping[str, Array], start: Mapping[str, Array]) -> float:
    """The L2 norm of the changes of all floats together, in float64; infinite where it overflows."""
    total = 0.0
    with np.errstate(over="ignore"):
        for name, value in parameters.items():
            if value.dtype.kind == "f":
                change = value.astype(np.float64).ravel() - start[name].astype(np.float64).ravel()
                total += float(change @ change)
    return math.sqrt(total) if math.isfinite(total) else math.inf


def _piece(reader: IO[bytes]) -> bytes:
    try:
        return reader.read(_PIECE)
    except OSError as failure:  # of the place; those of the copy are the host's
        raise _refused("cannot-read-file", "The update cannot be read.", str(failure)) from failure


def _check_header(copy: Path) -> None:
    """A header that no honest update has is not even parsed."""
    with copy.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        facts = f"{length} bytes; at most {MAX_HEADER_BYTES}"
        raise _refused("tensor-file-header", "The header of the update is too large.", facts)


def _refused(code: str, message: str, context: str | None) -> UpdateError:
    return UpdateError(code, message, context=context, hint=None)
