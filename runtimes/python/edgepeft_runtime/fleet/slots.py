"""The home of a device in a fleet: two slots for adapters, and what is trusted (section 8.4 of the SPEC).

A round is fetched into the slot that is not in use. One file, ``trusted.json``, says which slot is: to replace it is
the switch. The highest round it ever named stays in it, so that nobody can lead the device back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgepeft_runtime.errors import EdgepeftError, FleetError
from edgepeft_runtime.files.durable import make_folder, write_atomically
from edgepeft_runtime.files.fields import Fields
from edgepeft_runtime.files.lock import locked_folder, unusable
from edgepeft_runtime.files.regular import open_regular
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet import canonical, identity, rounds, signatures
from edgepeft_runtime.fleet.history import remembered
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.reading import VERSION, count_field, name_field, open_fields
from edgepeft_runtime.fleet.rounds import ADAPTER_FILE, LAST_ROUND, MAX_ROUND_BYTES, ROUND_FILE, Round

TRUSTED, RUNS, LOCK = "trusted.json", "runs", "lock"
SLOTS = ("slot-a", "slot-b")
MAX_STARTS = 2
"""So often may training begin with a new adapter without one good step, before the device falls back."""

_LOG = logging.getLogger("edgepeft_runtime")
_FORMAT = "edgepeft-trusted"
_MAX_BYTES = 2**12


@dataclass(frozen=True)
class Slot:
    """A slot and the round that was checked and put into it."""

    name: str
    round: int
    round_sha256: str


@dataclass(frozen=True)
class Trusted:
    """What a device knows to be true.

    Args:
        campaign: the fleet's name.
        round: the highest round that was ever switched to; ``round_sha256`` is the hash of its ``round.json``.
        current: the slot in use.
        previous: the slot to fall back to.
        starts: how often training began with ``current`` since it last made a good step.
        failed: the round with which training began too often in vain; the device does not switch to it again.
    """

    campaign: str
    round: int
    round_sha256: str
    current: Slot
    previous: Slot | None = None
    starts: int = 0
    failed: str | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> Trusted:
        """Read ``trusted.json``; raises :class:`FleetError` (``bad-trust``)."""
        fields = open_fields(content, "trust", TRUSTED, _FORMAT)
        found = cls(
            campaign=name_field(fields, "campaign"),
            round=count_field(fields, "round", LAST_ROUND),
            round_sha256=fields.sha256("round_sha256"),
            current=_slot(fields.part("current")),
            previous=None if fields.is_null("previous") else _slot(fields.part("previous")),
            starts=fields.natural("starts"),
            failed=fields.take("failed", str, None),
        )
        fields.finish()
        return found

    def to_bytes(self) -> bytes:
        """The canonical form."""
        slots = {"current": vars(self.current), "previous": vars(self.previous) if self.previous else None}
        value: dict[str, Any] = {**vars(self), **slots}
        return canonical.dumps({"format": _FORMAT, "version": VERSION, **value})


@dataclass(frozen=True)
class Current:
    """The adapter in use: the round it is of, and its file, whose hash has been checked."""

    round: Round
    adapter: Path


class DeviceHome:
    """The folder a device keeps its place in a fleet in."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def identity(self) -> Identity:
        """Who the device is; raises :class:`FleetError` where nobody has told it yet."""
        return Identity.read(self.path / identity.FILE)

    def adopt(self, source: str | Path) -> None:
        """Take over the file that the host wrote for this device; raises :class:`FleetError`."""
        told = Identity.read(source)
        with self.locked():
            told.write(self.path / identity.FILE)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from changing the home meanwhile.

        Raises:
            FleetError: another one does (``folder-in-use``), or the folder cannot be used (``cannot-write-file``), now
                or in the middle of what is done under the lock.
        """
        return locked_folder(self.path, LOCK, FleetError)

    def trusted(self) -> Trusted | None:
        """What is trusted, ``None`` before the first round; raises :class:`FleetError` if the file is damaged."""
        try:
            return Trusted.from_bytes(_read(self.path / TRUSTED, _MAX_BYTES))
        except FileNotFoundError:
            return None
        except OSError as failure:
            raise unusable(self.path, failure, FleetError) from failure

    def mended(self) -> Trusted | None:
        """What is trusted, after falling back where the slot in use is damaged and the other is not."""
        trusted = self.trusted()
        if trusted is not None and self.whole(trusted.current) is None and self._previous(trusted) is not None:
            self._fall_back(trusted)
            return self.trusted()
        return trusted

    def trust(self, trusted: Trusted) -> None:
        """Switch: from here on this is true."""
        write_atomically(self.path / TRUSTED, [trusted.to_bytes()], error=FleetError)

    def spare(self, trusted: Trusted | None) -> Path:
        """The slot that is not in use, made if it is missing."""
        name = SLOTS[0] if trusted is None or trusted.current.name == SLOTS[1] else SLOTS[1]
        path = self.path / name
        make_folder(path)
        return path

    def whole(self, slot: Slot) -> Current | None:
        """What a slot holds, if it is what was put there, to the byte."""
        folder = self.path / slot.name
        try:
            content = _read(folder / ROUND_FILE, MAX_ROUND_BYTES)
            if signatures.sha256(content) != slot.round_sha256:
                return None
            found = Round.from_bytes(content)
            if sha256_of(folder / ADAPTER_FILE) != found.adapter.sha256:
                return None
        except (OSError, EdgepeftError):
            return None
        return Current(found, folder / ADAPTER_FILE)

    def current(self) -> Current:
        """The adapter in use; where its slot is damaged, the device falls back to the other one.

        Raises:
            FleetError: no round was joined yet (``not-joined``), or no slot is whole (``no-whole-slot``).
        """
        self._trusted_now()  # before a folder is made for the lock
        with self.locked():
            return self.current_while_locked()

    def current_while_locked(self) -> Current:
        """:meth:`current` for who holds the lock."""
        trusted = self._trusted_now()
        found = self.whole(trusted.current)
        if found is not None:
            return found
        _LOG.warning("the slot of round %d is damaged; falling back", trusted.current.round)
        return self._fall_back(trusted)

    def start(self) -> Current:
        """:meth:`current` to train with: counts how often; after two starts without a good step falls back."""
        self._trusted_now()
        with self.locked():
            found = self.current_while_locked()
            trusted = self._trusted_now()
            if trusted.starts >= MAX_STARTS and self._previous(trusted) is not None:
                _LOG.warning("training failed %d times with round %d; falling back", MAX_STARTS, trusted.current.round)
                found = self._fall_back(replace(trusted, failed=trusted.current.round_sha256))
                trusted = self._trusted_now()
            self.trust(replace(trusted, starts=trusted.starts + 1))
            return found

    def settle(self) -> bool:
        """A good step was made with the adapter in use. Whether that is noted; another process may be in the way."""
        try:
            with self.locked():
                trusted = self._trusted_now()
                if trusted.starts:
                    self.trust(replace(trusted, starts=0))
        except FleetError as failure:
            if failure.reference != "folder-in-use":
                raise
            return False
        return True

    def known(self) -> Iterator[Round]:
        """The rounds that updates may have been trained from: the one in use, the one before, and earlier ones."""
        trusted = self.trusted()
        inside = set[int]()
        for slot in (trusted.current, trusted.previous) if trusted is not None else ():
            found = self.whole(slot) if slot is not None else None
            if found is not None:
                inside.add(found.round.round)
                yield found.round
        yield from (number for number in remembered(self.path) if number.round not in inside)

    def run(self, number: int) -> Path:
        """Where the training of a round is kept."""
        return self.path / RUNS / rounds.folder(number)

    def _previous(self, trusted: Trusted) -> Current | None:
        return None if trusted.previous is None else self.whole(trusted.previous)

    def _fall_back(self, trusted: Trusted) -> Current:
        found = self._previous(trusted)
        if trusted.previous is None or found is None:
            raise FleetError(
                "no-whole-slot",
                f"No slot in {self.path} holds a whole round.",
                context=f"the last one was round {trusted.round}",
                hint="run `edgepeft join` to fetch it again.",
            )
        self.trust(replace(trusted, current=trusted.previous, previous=None, starts=0))
        return found

    def _trusted_now(self) -> Trusted:
        trusted = self.trusted()
        if trusted is None:
            raise FleetError(
                "not-joined", f"{self.path} holds no round.", context=None, hint="run `edgepeft join` first."
            )
        return trusted


def _slot(fields: Fields) -> Slot:
    slot = Slot(fields.one_of("name", SLOTS), count_field(fields, "round", LAST_ROUND), fields.sha256("round_sha256"))
    fields.finish()
    return slot


def _read(path: Path, most: int) -> bytes:
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(most)
