"""The files of a round as frozen dataclasses: ``latest.json``, ``latest.sig``, ``round.json`` (SPEC, section 8.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgepeft_runtime.bundle.manifest import MAX_MANIFEST_BYTES, FileEntry, ParameterSpec
from edgepeft_runtime.errors import BadLatest, BadRound, BadSignature
from edgepeft_runtime.files.fields import Fields
from edgepeft_runtime.files.schema import read
from edgepeft_runtime.fleet import canonical, signatures
from edgepeft_runtime.fleet.reading import (
    VERSION,
    count_field,
    digest_or_null,
    name_field,
    natural_or_null,
    open_fields,
)

LATEST_FILE, LATEST_SIGNATURES = "latest.json", "latest.sig"
ROUND_FILE, ADAPTER_FILE = "round.json", "adapter.safetensors"
INBOX, BLOBS = "inbox", "blobs"
LAST_ROUND = 999_999
MAX_LATEST_BYTES, MAX_SIGNATURES_BYTES, MAX_ROUND_BYTES = 2**14, 2**14, 2**22
"""No file of the kind is larger; nothing more is read of one that is."""

MAX_STALENESS = 31
"""No round takes updates that are later; a device remembers so many rounds."""

CLIP, REFUSE = "clip", "refuse"
"""What becomes of an update that changes too much."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def folder(number: int) -> str:
    """The folder of a round: ``r000012``."""
    return f"r{number:06d}"


def blob(sha256: str) -> str:
    """Return the name of a file that is kept under its hash: ``blobs/<sha256>``."""
    return f"{BLOBS}/{sha256}"


def is_digest(text: str) -> bool:
    """Return whether a text is a SHA-256 in lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def number_of(name: str) -> int | None:
    """The round whose folder has this name, ``None`` where it is none."""
    return int(name[1:]) if re.fullmatch(r"r[0-9]{6}", name) and int(name[1:]) > 0 else None


@dataclass(frozen=True)
class Latest:
    """Which round is the latest of a fleet.

    Args:
        campaign: the fleet's name.
        round: the round's number, from 1.
        round_sha256: hash of its ``round.json``.
        created: when it was made, in seconds since 1970 (UTC).
        expires: from when on a device should no longer believe that it is the newest; ``None``: never.
    """

    campaign: str
    round: int
    round_sha256: str
    created: int
    expires: int | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> Latest:
        """Parse ``latest.json``. The content is untrusted until its signature has been verified.

        Raises:
            FleetError: it has another form (``bad-latest``).
        """
        fields = open_fields(content, BadLatest, LATEST_FILE, "edgepeft-latest")
        latest = cls(
            campaign=name_field(fields, "campaign"),
            round=count_field(fields, "round", LAST_ROUND),
            round_sha256=fields.sha256("round_sha256"),
            created=fields.natural("created"),
            expires=natural_or_null(fields, "expires"),
        )
        fields.finish()
        return latest

    def to_bytes(self) -> bytes:
        """The canonical form."""
        return canonical.dumps({"format": "edgepeft-latest", "version": VERSION, **vars(self)})


@dataclass(frozen=True)
class LatestSignatures:
    """Ed25519 signatures (hex) of versions of ``latest.json``, by the hash of the file.

    It contains two: that of the version in place and that of the one before. Two files cannot be replaced at once, so a
    reader may meet the old file with the new signatures.
    """

    by_sha256: dict[str, str]

    @classmethod
    def from_bytes(cls, content: bytes) -> LatestSignatures:
        """Read ``latest.sig``; raises :class:`FleetError` (``bad-signature``)."""
        fields = open_fields(content, BadSignature, LATEST_SIGNATURES, "edgepeft-signatures")
        found = fields.take("ed25519", dict)
        fields.finish()
        for digest, signature in found.items():
            if not (_DIGEST.fullmatch(digest) and isinstance(signature, str) and _SIGNATURE.fullmatch(signature)):
                raise fields.wrong("ed25519", "hashes with 128 hexadecimal digits each", found)
        return cls(found)

    def to_bytes(self) -> bytes:
        """The canonical form."""
        return canonical.dumps({"format": "edgepeft-signatures", "version": VERSION, "ed25519": self.by_sha256})

    def check(self, latest: bytes, host_key: bytes) -> None:
        """Refuse a ``latest.json`` without a signature of the host; raises :class:`FleetError` (``bad-signature``)."""
        digest = signatures.sha256(latest)
        signature = self.by_sha256.get(digest)
        if signature is None or not signatures.is_signed(
            signatures.LATEST, digest, signatures.ED25519, host_key, bytes.fromhex(signature)
        ):
            raise BadSignature(
                "latest.json is not signed by the host.",
                context=f"it has SHA-256 {digest}; host key {host_key.hex()}",
                hint="try again later, it may be half copied; if it stays so, do not use this remote.",
            )


@dataclass(frozen=True)
class Limits:
    """What a device may take for a round: bytes of an update, and optimizer steps (``None``: as many as it likes)."""

    update_bytes: int
    steps: int | None = None


@dataclass(frozen=True)
class Round:
    """A round: an adapter to start from, and what updates must satisfy.

    Args:
        campaign: the fleet's name.
        round: the number, from 1.
        previous: hash of the ``round.json`` before, ``None`` for the first.
        restores: the round whose adapter this one brings back, ``None`` where it is a new one.
        created: when it was made, in seconds since 1970 (UTC).
        expires: from when on no updates of it are taken; ``None``: never.
        base_sha256: the base the adapter belongs to.
        adapter: hash and size of ``adapter.safetensors``.
        bundle: hash and size of the ``manifest.json`` of the bundle that the remote has; ``None``: it has none.
        tensors: what every update must hold.
        max_update_norm: largest L2 norm of what an update changes, over all its floats; ``None``: any.
        norm_action: what happens to a larger one: ``clip`` it when it is added up, or ``refuse`` it.
        max_staleness: how many rounds ago an update may have started when it arrives while this round is the newest.
        min_devices: how many devices it takes to close the round.
        limits: what a device may take.
    """

    campaign: str
    round: int
    previous: str | None
    restores: int | None
    created: int
    expires: int | None
    base_sha256: str
    adapter: FileEntry
    bundle: FileEntry | None
    tensors: tuple[ParameterSpec, ...]
    max_update_norm: float | None
    norm_action: str
    max_staleness: int
    min_devices: int
    limits: Limits

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
        fields = open_fields(content, BadRound, ROUND_FILE, "edgepeft-round")
        found = cls(
            campaign=name_field(fields, "campaign"),
            round=count_field(fields, "round", LAST_ROUND),
            previous=digest_or_null(fields, "previous"),
            restores=natural_or_null(fields, "restores"),
            created=fields.natural("created"),
            expires=natural_or_null(fields, "expires"),
            base_sha256=fields.sha256("base_sha256"),
            adapter=_entry(fields.part("adapter")),
            bundle=_bundle(fields.part_or_null("bundle")),
            tensors=tuple(_tensor(value, i) for i, value in enumerate(fields.take("tensors", list))),
            max_update_norm=_norm(fields),
            norm_action=fields.one_of("norm_action", (CLIP, REFUSE)),
            max_staleness=fields.natural("max_staleness"),
            min_devices=fields.natural("min_devices"),
            limits=_limits(fields.part("limits")),
        )
        fields.finish()
        return found

    def to_bytes(self) -> bytes:
        """The canonical form."""
        value = {
            **vars(self),
            "adapter": vars(self.adapter),
            "bundle": None if self.bundle is None else vars(self.bundle),
            "tensors": [{**vars(spec), "shape": list(spec.shape)} for spec in self.tensors],
            "limits": vars(self.limits),
        }
        return canonical.dumps({"format": "edgepeft-round", "version": VERSION, **value})

    @property
    def sha256(self) -> str:
        """The hash of its ``round.json``."""
        return signatures.sha256(self.to_bytes())


def _norm(fields: Fields) -> float | None:
    value = fields.take("max_update_norm", float, None)
    if value is not None and value <= 0:
        raise fields.wrong("max_update_norm", "a number above 0", value)
    return value


def _entry(fields: Fields) -> FileEntry:
    entry = FileEntry(fields.sha256("sha256"), fields.natural("bytes"))
    fields.finish()
    return entry


def _bundle(fields: Fields | None) -> FileEntry | None:
    entry = None if fields is None else _entry(fields)
    if entry is not None and entry.bytes > MAX_MANIFEST_BYTES:
        raise BadRound("The manifest of its bundle is too large.", f"{entry.bytes} bytes")
    return entry


def _limits(fields: Fields) -> Limits:
    limits = Limits(fields.natural("update_bytes"), natural_or_null(fields, "steps"))
    fields.finish()
    return limits


def _tensor(value: object, index: int) -> ParameterSpec:
    spec = read(ParameterSpec, value, f"{ROUND_FILE}: tensors[{index}]", BadRound)
    if not all(isinstance(dim, int) for dim in spec.shape):
        raise BadRound(f"{ROUND_FILE}: the shape of a tensor has names.", f"tensors[{index}]: {spec.shape}")
    return spec
