"""Keys of a fleet: the host's own, and what it knows of each device. All in files that only their owner may read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgepeft.sync.errors import SyncError
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.errors import FleetError
from edgepeft_runtime.files.durable import make_folder, write_atomically, writing
from edgepeft_runtime.files.regular import read_regular
from edgepeft_runtime.fleet import canonical, signatures
from edgepeft_runtime.fleet.identity import PRIVATE, Identity
from edgepeft_runtime.fleet.reading import VERSION, is_name, key_field, name_field, open_fields

HOST = "host.json"
ACTIVE, REVOKED = "active", "revoked"
_MAX_BYTES = 2**12


@dataclass(frozen=True)
class HostKey:
    """The host's Ed25519 key: the campaign it is for, and its seed, 32 bytes."""

    campaign: str
    seed: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """The key that devices check signatures by, 32 bytes."""
        return signatures.public_key(self.seed)

    def sign(self, head: bytes) -> str:
        """The signature of a ``latest.json``, hex."""
        digest = signatures.sha256(head)
        return signatures.sign(signatures.LATEST, digest, signatures.ED25519, self.seed).hex()


@dataclass(frozen=True)
class Device:
    """What the host knows of a device.

    Args:
        device: its name.
        algorithm: how it signs.
        key: the shared key, or the device's public key.
        token_sha256: hash of the token it shows to ``edgepeft serve``.
        state: ``active`` or ``revoked``.
    """

    device: str
    algorithm: str
    key: bytes = field(repr=False)
    token_sha256: str = field(repr=False)
    state: str = ACTIVE

    def has_token(self, token: str) -> bool:
        """Whether the token is this device's, in time that does not depend on how much of it is right."""
        return hmac.compare_digest(hashlib.sha256(token.encode()).hexdigest(), self.token_sha256)


class Keys:
    """The keys in a host's workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.keys
        self._devices = workspace.keys / "devices"

    def create(self, campaign: str) -> HostKey:
        """Make the host's key. There is one per workspace, and it is never replaced.

        Raises:
            SyncError: there is one already (``key-exists``), or the name is none (``bad-name``).
        """
        _check_name(campaign, "campaign")
        if (self._folder / HOST).exists():
            raise SyncError(
                "key-exists",
                f"There is a host key in {self._folder} already.",
                context=None,
                hint="devices trust this one; begin another campaign in another workspace.",
            )
        with writing(self._folder, SyncError):
            make_folder(self._devices)
            self._folder.chmod(0o700)
        key = HostKey(campaign, secrets.token_bytes(32))
        _write(self._folder / HOST, "edgepeft-host", {"campaign": campaign, "seed": key.seed.hex()})
        return key

    def host(self) -> HostKey:
        """The host's key; raises :class:`SyncError` (``no-key``) where there is none."""
        path = self._folder / HOST
        if not path.exists():
            raise SyncError(
                "no-key", f"There is no host key in {self._folder}.", context=None, hint="run `edgepeft keys new`."
            )
        fields = open_fields(_read(path), "key", str(path), "edgepeft-host")
        key = HostKey(name_field(fields, "campaign"), key_field(fields, "seed"))
        fields.finish()
        return key

    def add(self, device: str, out: str | Path, algorithm: str = signatures.HMAC) -> Identity:
        """Register a device, and write what has to be brought to it, which the host does not keep.

        The file is written first, so that no device is registered whose secret is lost. A call that was interrupted is
        finished by the same call: the file that is there is taken for what it is.

        Args:
            device: its name.
            out: the file to bring to the device.
            algorithm: how it signs.

        Raises:
            SyncError: there is a device of this name (``device-exists``), the name is none (``bad-name``), or ``out``
                is a file that tells another device who it is, or something else (``target-exists``).
            FleetError: the file cannot be written.
        """
        _check_name(device, "device")
        host = self.host()
        told, known = self._told(Path(out), device, algorithm, host), self.device(device)
        if known is not None and (told is None or _registered(told, known.state) != known):
            raise SyncError(
                "device-exists",
                f"The device {device} is registered already.",
                context=None,
                hint="give the new one another name: sequence numbers are counted by name.",
            )
        if told is None:
            key, token = secrets.token_bytes(32), secrets.token_urlsafe(32)
            told = Identity(host.campaign, device, host.public, algorithm, key, token)
            told.write(out)
        if known is None:
            self._save(_registered(told, ACTIVE))
        return told

    def _told(self, out: Path, device: str, algorithm: str, host: HostKey) -> Identity | None:
        """What an interrupted :meth:`add` has written for this device; ``None`` where there is no file."""
        if not os.path.lexists(out):
            return None
        if out.is_file() and not out.is_symlink():
            with suppress(FleetError):
                found = Identity.read(out)
                expected = (host.campaign, device, host.public, algorithm)
                if (found.campaign, found.device, found.host_key, found.algorithm) == expected:
                    return found
        raise SyncError(
            "target-exists",
            f"{out} exists and is not the identity of {device}.",
            context="it may be the only copy of another device's secret.",
            hint="choose a path that does not exist yet.",
        )

    def device(self, name: str) -> Device | None:
        """What is known of a device, ``None`` where it is not registered."""
        path = self._path(name)
        if not is_name(name) or not path.exists():
            return None
        try:
            return _registration(path)
        except FleetError as error:  # the host is at fault, and no update of the device
            raise SyncError(
                "damaged-key", f"{path} is damaged.", context=error.message, hint="restore it from a copy."
            ) from error

    def devices(self) -> Iterator[Device]:
        """All registered devices, by name."""
        for path in sorted(self._devices.glob("*.json")):
            found = self.device(path.stem)
            if found is not None:
                yield found

    def set_state(self, name: str, state: str) -> None:
        """Revoke a device, or take that back; raises :class:`SyncError` (``unknown-device``)."""
        found = self.device(name)
        if found is None:
            raise SyncError(
                "unknown-device",
                f"No device {name} is registered.",
                context=f"in {self._devices}",
                hint="`edgepeft status` lists them.",
            )
        self._save(replace(found, state=state))

    def _path(self, device: str) -> Path:
        return self._devices / f"{device}.json"

    def _save(self, device: Device) -> None:
        _write(self._path(device.device), "edgepeft-registration", {**vars(device), "key": device.key.hex()})


def _registered(told: Identity, state: str) -> Device:
    """What the host keeps of a device."""
    known = told.key if told.algorithm == signatures.HMAC else signatures.public_key(told.key)
    return Device(told.device, told.algorithm, known, hashlib.sha256(told.token.encode()).hexdigest(), state)


def _registration(path: Path) -> Device:
    fields = open_fields(_read(path), "key", str(path), "edgepeft-registration")
    found = Device(
        device=name_field(fields, "device"),
        algorithm=fields.one_of("algorithm", signatures.ALGORITHMS),
        key=key_field(fields, "key"),
        token_sha256=fields.sha256("token_sha256"),
        state=fields.one_of("state", (ACTIVE, REVOKED)),
    )
    fields.finish()
    return found


def _write(path: Path, kind: str, fields: dict[str, str]) -> None:
    content = canonical.dumps({"format": kind, "version": VERSION, **fields})
    write_atomically(path, [content], error=FleetError, mode=PRIVATE)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_BYTES)
    except OSError as failure:
        raise FleetError(
            "cannot-read-file", f"Cannot read the key {path}.", context=str(failure), hint="check the permissions."
        ) from failure


def _check_name(name: str, what: str) -> None:
    if not is_name(name):
        raise SyncError(
            "bad-name",
            f"{name!r} cannot name a {what}.",
            context=None,
            hint="take at most 64 of a..z, 0..9, - and _, with a letter or a digit at both ends.",
        )
