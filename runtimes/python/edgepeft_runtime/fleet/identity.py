"""The identity of a device in a fleet: its name, its key, and the host's key that it trusts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from edgepeft_runtime.errors import BadIdentity, NoIdentity
from edgepeft_runtime.files.durable import write_atomically
from edgepeft_runtime.files.regular import open_regular
from edgepeft_runtime.files.schema import BadFields, one_of
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.reading import Name, file_bytes, read_file

FORMAT = "edgepeft-device"
FILE = "device.json"

PRIVATE = 0o600
"""Permissions of a file that only its owner may read."""

_MAX_BYTES = 2**12


@dataclass(frozen=True)
class Identity:
    """The identity that the host passes to a device once, over a channel that both trust.

    Args:
        campaign: the fleet's name.
        device: the device's name.
        host_key: the host's public Ed25519 key, 32 bytes.
        algorithm: how the device signs.
        key: the shared key, or the seed of the device's Ed25519 key, 32 bytes.
        token: its credential for an HTTP host.
    """

    campaign: Name
    device: Name
    host_key: bytes
    algorithm: Annotated[str, one_of(signatures.ALGORITHMS)]
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
        try:
            return read_file(cls, content, str(path), FORMAT)
        except BadFields as wrong:
            raise BadIdentity(wrong.message, wrong.context) from None

    def write(self, path: str | Path) -> None:
        """Write ``device.json``, readable by its owner alone."""
        write_atomically(path, [file_bytes(self, FORMAT)], mode=PRIVATE)
