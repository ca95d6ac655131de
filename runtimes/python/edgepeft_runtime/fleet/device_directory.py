"""The device directory: two slots for adapters, and the trusted rounds (SPEC, section 8.4).

A round is fetched into the slot that is not in use. One file, ``trusted.json``, says which slot is: replacing it is the
switch. It keeps the highest round it ever named, so that nobody can lead the device back.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from edgepeft_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from edgepeft_runtime.errors import EdgepeftError, NotJoined, NoWholeSlot, PathInUse
from edgepeft_runtime.files.durable import make_folder, write_atomically
from edgepeft_runtime.files.lock import locked_folder, unusable
from edgepeft_runtime.files.regular import read_regular
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet import identity, rounds, signatures
from edgepeft_runtime.fleet.history import remembered
from edgepeft_runtime.fleet.identity import Identity
from edgepeft_runtime.fleet.rounds import ADAPTER_FILE, MAX_ROUND_BYTES, ROUND_FILE, Round
from edgepeft_runtime.fleet.trust import SLOTS, TRUSTED, Slot, Trusted

RUNS, BUNDLES, LOCK = "runs", "bundles", "lock"

MAX_STARTS = 2
"""Times that training may start with a new adapter without one good step, before the device falls back."""

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 2**12


@dataclass(frozen=True)
class Current:
    """The round in use.

    Attributes:
        round: the round.
        adapter: the file of its adapter, whose hash has been verified.
        bundle: the folder of its bundle, ``None`` where the device was given one by other means.
    """

    round: Round
    adapter: Path
    bundle: Path | None = None


class DeviceDirectory:
    """The folder of a device in a fleet: its identity, its slots and its runs."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, device: str | Path | DeviceDirectory) -> DeviceDirectory:
        """Return a device directory by its path, or the one that is given."""
        return device if isinstance(device, DeviceDirectory) else cls(device)

    def identity(self) -> Identity:
        """Return who the device is; raises ``FleetError`` before ``adopt``."""
        return Identity.read(self.path / identity.FILE)

    def adopt(self, source: str | Path) -> None:
        """Copy the file that the host wrote for this device; raises ``FleetError``."""
        given = Identity.read(source)
        with self.locked():
            given.write(self.path / identity.FILE)

    def locked(self) -> AbstractContextManager[None]:
        """Return a context in which no other process changes the directory.

        Raises:
            FleetError: another one does (``path-in-use``), or the folder cannot be used (``cannot-write-file``), now
                or in the middle of an operation under the lock.
        """
        return locked_folder(self.path, LOCK)

    def trusted(self) -> Trusted | None:
        """Return the trusted rounds, ``None`` before the first round; raises ``FleetError`` for a damaged file."""
        try:
            return Trusted.from_bytes(read_regular(self.path / TRUSTED, _MAX_BYTES, follow=False))
        except FileNotFoundError:
            return None
        except OSError as failure:
            raise unusable(self.path, failure) from failure

    def recovered(self) -> Trusted | None:
        """Return the trusted rounds, after falling back if the slot in use is damaged and the other is not."""
        trusted = self.trusted()
        if trusted is not None and self.whole(trusted.current) is None and self._previous(trusted) is not None:
            self._fall_back(trusted)
            return self.trusted()
        return trusted

    @property
    def bundles(self) -> Path:
        """The folder of the bundles that were fetched, each named by the hash of its manifest."""
        return self.path / BUNDLES

    def remove_bundles(self, but: Collection[str | None]) -> None:
        """Remove fetched files and bundles, except the bundles whose manifests have these hashes."""
        for folder in self.bundles.glob("*") if self.bundles.is_dir() else ():
            if folder.name not in but:
                shutil.rmtree(folder, ignore_errors=True)

    def trust(self, trusted: Trusted) -> None:
        """Replace the record of trusted rounds, which switches to the slot it names."""
        write_atomically(self.path / TRUSTED, [trusted.to_bytes()])

    def spare(self, trusted: Trusted | None) -> Path:
        """Return the slot that is not in use, made if it is missing."""
        name = SLOTS[0] if trusted is None or trusted.current.name == SLOTS[1] else SLOTS[1]
        path = self.path / name
        make_folder(path)
        return path

    def whole(self, slot: Slot) -> Current | None:
        """Return the contents of a slot, ``None`` if it is damaged."""
        folder = self.path / slot.name
        try:
            content = read_regular(folder / ROUND_FILE, MAX_ROUND_BYTES, follow=False)
            if signatures.sha256(content) != slot.round_sha256:
                return None
            round_ = Round.from_bytes(content)
            if sha256_of(folder / ADAPTER_FILE) != round_.adapter.sha256:
                return None
            bundle = None if slot.bundle is None else self._bundle(slot.bundle)
        except (OSError, EdgepeftError):
            return None
        return Current(round_, folder / ADAPTER_FILE, bundle)

    def current(self) -> Current:
        """Return the round in use; if its slot is damaged, fall back to the other one.

        Raises:
            FleetError: no round was joined yet (``not-joined``), or no slot is whole (``no-whole-slot``).
        """
        self._trusted_now()  # before a folder is made for the lock
        with self.locked():
            return self.current_while_locked()

    def current_while_locked(self) -> Current:
        """Do what ``current`` does, for a caller that has the lock."""
        trusted = self._trusted_now()
        current = self.whole(trusted.current)
        if current is not None:
            return current
        _LOG.warning("the slot of round %d is damaged; falling back", trusted.current.round)
        return self._fall_back(trusted)

    def start(self) -> Current:
        """Return the round to train with, and count the start; after two starts without a good step, fall back."""
        self._trusted_now()
        with self.locked():
            current = self.current_while_locked()
            trusted = self._trusted_now()
            if trusted.starts >= MAX_STARTS and self._previous(trusted) is not None:
                _LOG.warning("training failed %d times with round %d; falling back", MAX_STARTS, trusted.current.round)
                current = self._fall_back(replace(trusted, failed=trusted.current.round_sha256))
                trusted = self._trusted_now()
            self.trust(replace(trusted, starts=trusted.starts + 1))
            return current

    def settle(self) -> bool:
        """Record that a good step was made with the adapter in use; return ``False`` if the directory is locked."""
        try:
            with self.locked():
                trusted = self._trusted_now()
                if trusted.starts:
                    self.trust(replace(trusted, starts=0))
        except PathInUse:
            return False
        return True

    def known(self) -> Iterator[Round]:
        """Yield the rounds that updates may have been trained from: those of the slots, then earlier ones."""
        trusted = self.trusted()
        inside = set[int]()
        for slot in (trusted.current, trusted.previous) if trusted is not None else ():
            whole = self.whole(slot) if slot is not None else None
            if whole is not None:
                inside.add(whole.round.round)
                yield whole.round
        yield from (round_ for round_ in remembered(self.path) if round_.round not in inside)

    def run(self, number: int) -> Path:
        """Return the state directory of the training of a round."""
        return self.path / RUNS / rounds.folder(number)

    def _bundle(self, sha256: str) -> Path:
        """Return the folder of a bundle whose files are there; opening it verifies their hashes.

        Raises:
            OSError: a file is missing, or damaged.
        """
        folder = self.bundles / sha256
        content = read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES, follow=False)
        files = Manifest.from_json(content).files
        if signatures.sha256(content) != sha256 or any(
            (folder / n).stat().st_size != e.bytes for n, e in files.items()
        ):
            raise OSError(f"{folder} is damaged")
        return folder

    def _previous(self, trusted: Trusted) -> Current | None:
        return None if trusted.previous is None else self.whole(trusted.previous)

    def _fall_back(self, trusted: Trusted) -> Current:
        previous = self._previous(trusted)
        if trusted.previous is None or previous is None:
            raise NoWholeSlot(
                f"No slot in {self.path} contains a whole round.",
                context=f"the last one was round {trusted.round}",
                hint="run `edgepeft join` to fetch it again.",
            )
        self.trust(replace(trusted, current=trusted.previous, previous=None, starts=0))
        return previous

    def _trusted_now(self) -> Trusted:
        trusted = self.trusted()
        if trusted is None:
            raise NotJoined(f"{self.path} contains no round.", context=None, hint="run `edgepeft join` first.")
        return trusted
