"""The keys of a fleet: those of the host and of its devices, in files that only their owner can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from edgepeft.errors import TargetExists
from edgepeft.sync.errors import BadName, DamagedKey, DeviceExists, KeyExists, NoKey
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.errors import BadKey, CannotReadFile, FleetError, UnknownDevice
from edgepeft_runtime.files.durable import make_folder, write_atomically, writing
from edgepeft_runtime.files.regular import read_regular
from edgepeft_runtime.files.schema import BadFields, Sha256, one_of
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.identity import PRIVATE, Identity
from edgepeft_runtime.fleet.reading import Name, file_bytes, is_name, read_file

HOST = "host.json"
ACTIVE, REVOKED = "active", "revoked"
_MAX_BYTES = 2**12

_HOST, _REGISTRATION = "edgepeft-host", "edgepeft-registration"


@dataclass(frozen=True)
class HostKey:
    """The host's Ed25519 key: its campaign, and its seed of 32 bytes."""

    campaign: Name
    seed: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """The public key by which devices check signatures, 32 bytes."""
        return signatures.public_key(self.seed)

    def sign(self, latest: bytes) -> str:
        """Return the signature of a ``latest.json``, hex."""
        digest = signatures.sha256(latest)
        return signatures.sign(signatures.LATEST, digest, signatures.ED25519, self.seed).hex()


@dataclass(frozen=True)
class Device:
    """A registered device.

    Args:
        device: Its name.
        algorithm: The algorithm of its signatures.
        key: The shared key, or the device's public key.
        token_sha256: Hash of the token that it sends to ``edgepeft serve``.
        state: ``active`` or ``revoked``.
    """

    device: Name
    algorithm: Annotated[str, one_of(signatures.ALGORITHMS)]
    key: bytes = field(repr=False)
    token_sha256: Sha256 = field(repr=False)
    state: Annotated[str, one_of((ACTIVE, REVOKED))] = ACTIVE

    def has_token(self, token: str) -> bool:
        """Return whether a token is this device's, in a time that does not depend on how much of it is correct."""
        return hmac.compare_digest(_hashed(token), self.token_sha256)


class Keys:
    """The keys in a host's workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.keys
        self._devices = workspace.keys / "devices"

    def create(self, campaign: str) -> HostKey:
        """Create the host's key. A workspace has one, which is never replaced.

        Raises:
            SyncError: There is a key already (``key-exists``), or the name is not allowed (``bad-name``).
        """
        _check_name(campaign, "campaign")
        if (self._folder / HOST).exists():
            raise KeyExists(
                f"There is a host key in {self._folder} already.",
                context=None,
                hint="devices trust this one; start another campaign in another workspace.",
            )
        with writing(self._folder):
            make_folder(self._devices)
            self._folder.chmod(0o700)
        key = HostKey(campaign, secrets.token_bytes(32))
        _write(self._folder / HOST, _HOST, key)
        return key

    def host(self) -> HostKey:
        """Return the host's key; raises ``SyncError`` (``no-key``) if there is none."""
        path = self._folder / HOST
        if not path.exists():
            raise NoKey(f"There is no host key in {self._folder}.", context=None, hint="run `edgepeft keys new`.")
        try:
            return read_file(HostKey, _read(path), str(path), _HOST)
        except BadFields as wrong:
            raise BadKey(wrong.message, wrong.context) from None

    def add(self, device: str, out: str | Path, algorithm: str = signatures.HMAC) -> Identity:
        """Register a device, and write its identity file, whose secret the host does not keep.

        The file is written first, so that no device is registered whose secret is lost. If a call was interrupted, the
        same call completes it, and accepts the file that the first one has written.

        Args:
            device: Its name.
            out: The file to copy to the device.
            algorithm: The algorithm of its signatures.

        Raises:
            SyncError: There is a device of this name (``device-exists``), the name is not allowed (``bad-name``), or
                ``out`` is the identity of another device, or something else (``target-exists``).
            FleetError: The file cannot be written.
        """
        _check_name(device, "device")
        host = self.host()
        identity, known = self._written(Path(out), device, algorithm, host), self.device(device)
        if known is not None and (identity is None or _registered(identity, known.state) != known):
            raise DeviceExists(
                f"The device {device} is registered already.",
                context=None,
                hint="choose another name for the new one: sequence numbers are counted by name.",
            )
        if identity is None:
            key, token = secrets.token_bytes(32), secrets.token_urlsafe(32)
            identity = Identity(host.campaign, device, host.public, algorithm, key, token)
            identity.write(out)
        if known is None:
            self._save(_registered(identity, ACTIVE))
        return identity

    def _written(self, out: Path, device: str, algorithm: str, host: HostKey) -> Identity | None:
        """Return the identity that an interrupted ``add`` has written; ``None`` if there is no file."""
        if not os.path.lexists(out):
            return None
        if out.is_file() and not out.is_symlink():
            with suppress(FleetError):
                identity = Identity.read(out)
                expected = (host.campaign, device, host.public, algorithm)
                if (identity.campaign, identity.device, identity.host_key, identity.algorithm) == expected:
                    return identity
        raise TargetExists(
            f"{out} exists and is not the identity of {device}.",
            context="it may be the only copy of another device's secret.",
            hint="choose a path that does not exist yet.",
        )

    def device(self, name: str) -> Device | None:
        """Return a device, ``None`` if it is not registered."""
        path = self._path(name)
        if not is_name(name) or not path.exists():
            return None
        try:
            return _registration(path)
        except FleetError as error:  # the fault is the host's, not an update's
            raise DamagedKey(f"{path} is damaged.", context=error.message, hint="restore it from a copy.") from error

    def devices(self) -> Iterator[Device]:
        """Yield all registered devices, by name."""
        for path in sorted(self._devices.glob("*.json")):
            device = self.device(path.stem)
            if device is not None:
                yield device

    def set_state(self, name: str, state: str) -> None:
        """Revoke a device, or restore it; raises ``SyncError`` (``unknown-device``)."""
        device = self.device(name)
        if device is None:
            raise UnknownDevice(
                f"No device {name} is registered.",
                context=f"in {self._devices}",
                hint="`edgepeft status` lists them.",
            )
        self._save(replace(device, state=state))

    def _path(self, device: str) -> Path:
        return self._devices / f"{device}.json"

    def _save(self, device: Device) -> None:
        _write(self._path(device.device), _REGISTRATION, device)


def _registered(identity: Identity, state: str) -> Device:
    """Return the host's record of a device."""
    shared = identity.algorithm == signatures.HMAC
    key = identity.key if shared else signatures.public_key(identity.key)
    return Device(identity.device, identity.algorithm, key, _hashed(identity.token), state)


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _registration(path: Path) -> Device:
    try:
        return read_file(Device, _read(path), str(path), _REGISTRATION)
    except BadFields as wrong:
        raise BadKey(wrong.message, wrong.context) from None


def _write(path: Path, format_: str, value: HostKey | Device) -> None:
    write_atomically(path, [file_bytes(value, format_)], mode=PRIVATE)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_BYTES)
    except OSError as failure:
        raise CannotReadFile(
            f"Cannot read the key {path}.", context=str(failure), hint="check the permissions."
        ) from failure


def _check_name(name: str, what: str) -> None:
    if not is_name(name):
        raise BadName(
            f"{name!r} cannot name a {what}.",
            context=None,
            hint="use at most 64 of a..z, 0..9, - and _, with a letter or a digit at both ends.",
        )
