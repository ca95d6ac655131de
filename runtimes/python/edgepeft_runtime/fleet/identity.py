"""Who a device is in a fleet: its name, its key, and the host's key that it trusts (section 8.5 of the SPEC)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from edgepeft_runtime.errors import BadIdentity, NoIdentity
from edgepeft_runtime.files.durable import write_atomically
from edgepeft_runtime.files.regular import open_regular
from edgepeft_runtime.fleet import canonical, signatures
from edgepeft_runtime.fleet.reading import VERSION, key_field, name_field, open_fields

FORMAT = "edgepeft-device"
FILE = "device.json"

PRIVATE = 0o600
"""Permissions of a file that only its owner may read."""

_MAX_BYTES = 2**12


@dataclass(frozen=True)
class Identity:
    """What the host hands to a device, once, by a way that both trust.

    Args:
        campaign: the fleet's name.
        device: the device's name.
        host_key: the host's public Ed25519 key, 32 bytes.
        algorithm: how the device signs.
        key: the shared key, or the seed of the device's Ed25519 key, 32 bytes.
        token: what it shows to an HTTP host.
    """

    campaign: str
    device: str
    host_key: bytes
    algorithm: str
    key: bytes = field(repr=False)
    token: str = field(repr=False)

    @classmethod
    def read(cls, path: str | Path) -> Identity:
        """Read ``device.json``.

        Raises:
            FleetError: there is none (``no-identity``), or it is damaged (``bad-identity``).
        """
        try:
            with os.fdopen(open_regular(path, follow=True), "rb") as file:
                content = file.read(_MAX_BYTES)
        except OSError as failure:
            raise NoIdentity(
                f"Cannot read who this device is from {path}.",
                context=str(failure),
                hint="bring it the file that `edgepeft keys add` wrote on the host.",
            ) from failure
        fields = open_fields(content, BadIdentity, str(path), FORMAT)
        found = cls(
            campaign=name_field(fields, "campaign"),
            device=name_field(fields, "device"),
            host_key=key_field(fields, "host_key"),
            algorithm=fields.one_of("algorithm", signatures.ALGORITHMS),
            key=key_field(fields, "key"),
            token=fields.take("token", str),
        )
        fields.finish()
        return found

    def write(self, path: str | Path) -> None:
        """Write ``device.json``, for its owner's eyes only."""
        value = {**vars(self), "host_key": self.host_key.hex(), "key": self.key.hex()}
        content = canonical.dumps({"format": FORMAT, "version": VERSION, **value})
        write_atomically(path, [content], mode=PRIVATE)
