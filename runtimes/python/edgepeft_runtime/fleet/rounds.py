"""The files of a round as frozen dataclasses: ``latest.json``, ``latest.sig``, ``round.json`` (SPEC, section 8.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.bundle.manifest import MAX_MANIFEST_BYTES
from edgepeft_runtime.bundle.specs import FileEntry, ParameterSpec
from edgepeft_runtime.errors import BadLatest, BadRound, BadSignature
from edgepeft_runtime.files.schema import HEX_64, BadFields, Check, Natural, Sha256, one_of
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.reading import Name, count, file_bytes, read_file

LATEST_FILE, LATEST_SIGNATURES = "latest.json", "latest.sig"
ROUND_FILE, ADAPTER_FILE = "round.json", "adapter.safetensors"
INBOX, BLOBS = "inbox", "blobs"
LAST_ROUND = 999_999
MAX_LATEST_BYTES, MAX_SIGNATURES_BYTES, MAX_ROUND_BYTES = 2**14, 2**14, 2**22
"""The largest files of each kind; no more is read."""

MAX_STALENESS = 31
"""The largest number of rounds that an update may be late; a device remembers so many rounds."""

CLIP, REFUSE = "clip", "refuse"
"""Ways to treat an update whose change is too large."""

RoundNumber = Annotated[int, count(LAST_ROUND)]
_LATEST, _SIGNATURES, _ROUND = "edgepeft-latest", "edgepeft-signatures", "edgepeft-round"
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def _are_signatures(values: Mapping[str, str]) -> bool:
    return all(HEX_64.fullmatch(digest) and _SIGNATURE.fullmatch(value) for digest, value in values.items())


def _is_small(manifest: FileEntry | None) -> bool:
    return manifest is None or manifest.bytes <= MAX_MANIFEST_BYTES


def _have_sizes(specs: Sequence[ParameterSpec]) -> bool:
    return all(isinstance(dim, int) for spec in specs for dim in spec.shape)


def folder(number: int) -> str:
    """Return the folder of a round: ``r000012``."""
    return f"r{number:06d}"


def blob(sha256: str) -> str:
    """Return the name of a file that is stored under its hash: ``blobs/<sha256>``."""
    return f"{BLOBS}/{sha256}"


def is_digest(text: str) -> bool:
    """Return whether a text is a SHA-256 in lower-case hex."""
    return HEX_64.fullmatch(text) is not None


def number_of(name: str) -> int | None:
    """Return the round whose folder has this name, ``None`` for any other name."""
    return int(name[1:]) if re.fullmatch(r"r[0-9]{6}", name) and int(name[1:]) > 0 else None


@dataclass(frozen=True)
class Latest:
    """The latest round of a fleet.

    Args:
        campaign: the fleet's name.
        round: the round's number, from 1.
        round_sha256: hash of its ``round.json``.
        created: when it was made, in seconds since 1970 (UTC).
        expires: from when on a device should no longer believe that it is the newest; ``None``: never.
    """

    campaign: Name
    round: RoundNumber
    round_sha256: Sha256
    created: Natural
    expires: Natural | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> Latest:
        """Parse ``latest.json``. The content is untrusted until its signature has been verified.

        Raises:
            FleetError: it has another form (``bad-latest``).
        """
        try:
            return read_file(cls, content, LATEST_FILE, _LATEST)
        except BadFields as wrong:
            raise BadLatest(wrong.message, wrong.context) from None

    def to_bytes(self) -> bytes:
        """Return the canonical form."""
        return file_bytes(self, _LATEST)


@dataclass(frozen=True)
class LatestSignatures:
    """Ed25519 signatures (hex) of versions of ``latest.json``, by the hash of the file.

    It contains two: those of the current and of the previous version. Two files cannot be replaced at once, so a reader
    may see the old file with the new signatures.
    """

    ed25519: Annotated[dict[str, str], Check("hashes with 128 hexadecimal digits each", _are_signatures)]

    @classmethod
    def from_bytes(cls, content: bytes) -> LatestSignatures:
        """Read ``latest.sig``; raises ``FleetError`` (``bad-signature``)."""
        try:
            return read_file(cls, content, LATEST_SIGNATURES, _SIGNATURES)
        except BadFields as wrong:
            raise BadSignature(wrong.message, wrong.context) from None

    def to_bytes(self) -> bytes:
        """Return the canonical form."""
        return file_bytes(self, _SIGNATURES)

    def check(self, latest: bytes, host_key: bytes) -> None:
        """Refuse a ``latest.json`` without a signature of the host; raises ``FleetError`` (``bad-signature``)."""
        digest = signatures.sha256(latest)
        signature = self.ed25519.get(digest)
        if signature is None or not signatures.is_signed(
            signatures.LATEST, digest, signatures.ED25519, host_key, bytes.fromhex(signature)
        ):
            raise BadSignature(
                "latest.json is not signed by the host.",
                context=f"it has SHA-256 {digest}; host key {host_key.hex()}",
                hint="try again later, it may be half copied; if it stays so, do not use this remote.",
            )


@dataclass(frozen=True)
class RoundLimits:
    """The limits of a device in a round: bytes of an update, and optimizer steps (``None``: any number)."""

    update_bytes: Natural
    steps: Natural | None = None


@dataclass(frozen=True)
class Round:
    """A round: an adapter to start from, and what updates must satisfy.

    Args:
        campaign: the fleet's name.
        round: the number, from 1.
        previous: hash of the ``round.json`` before, ``None`` for the first.
        restores: the round whose adapter this one brings back, ``None`` where it is a new one.
        created: when it was made, in seconds since 1970 (UTC).
        expires: time from which on its updates are refused; ``None`` if never.
        base_sha256: the base the adapter belongs to.
        adapter: hash and size of ``adapter.safetensors``.
        bundle: hash and size of the ``manifest.json`` of the bundle that the remote has; ``None``: it has none.
        tensors: the tensors of every update.
        max_update_norm: largest L2 norm of an update's change, over all its floats; ``None`` sets no limit.
        norm_action: what happens to a larger one: ``clip`` it when it is added up, or ``refuse`` it.
        max_staleness: how many rounds ago an update may have started when it arrives while this round is the newest.
        min_devices: number of devices required to close the round.
        limits: limits of training on a device.
    """

    campaign: Name
    round: RoundNumber
    previous: Sha256 | None
    restores: Natural | None
    created: Natural
    expires: Natural | None
    base_sha256: Sha256
    adapter: FileEntry
    bundle: Annotated[FileEntry | None, Check(f"at most {MAX_MANIFEST_BYTES} bytes", _is_small)]
    tensors: Annotated[tuple[ParameterSpec, ...], Check("tensors whose shapes are sizes", _have_sizes)]
    max_update_norm: Annotated[float, Check("a number above 0", lambda norm: norm > 0)] | None
    norm_action: Annotated[str, one_of((CLIP, REFUSE))]
    max_staleness: Natural
    min_devices: Natural
    limits: RoundLimits

    def __post_init__(self) -> None:
        if (self.previous is None) != (self.round == 1):
            raise BadRound("Every round but the first names the one before.", f"round {self.round}")
        if self.restores is not None and not 1 <= self.restores < self.round:
            raise BadRound("A round restores an earlier one.", f"round {self.round}: {self.restores}")
        if self.max_staleness > MAX_STALENESS:
            raise BadRound(f"Updates are at most {MAX_STALENESS} rounds late.", f"{self.max_staleness}")
        names = [spec.name for spec in self.tensors]
        if len(set(names)) != len(names) or not names:
            raise BadRound("A round names each tensor once, and at least one.", f"{len(names)} tensors")

    @classmethod
    def from_bytes(cls, content: bytes) -> Round:
        """Parse ``round.json``. The content is untrusted until its hash is known to be the one in ``latest.json``.

        Raises:
            FleetError: it has another form (``bad-round``).
        """
        try:
            return read_file(cls, content, ROUND_FILE, _ROUND)
        except BadFields as wrong:
            raise BadRound(wrong.message, wrong.context) from None

    def to_bytes(self) -> bytes:
        """Return the canonical form."""
        return file_bytes(self, _ROUND)

    @property
    def sha256(self) -> str:
        """The hash of its ``round.json``."""
        return signatures.sha256(self.to_bytes())
