"""The sidecar of an update says which device sends it for which round; it is signed, and written last (SPEC, 8.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated

from edgepeft_runtime.errors import BadSidecar, BadSignature
from edgepeft_runtime.files import canonical
from edgepeft_runtime.files.schema import HEX_64, BadFields, Check, Natural, Sha256, one_of
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.reading import VERSION, Name, count, file_bytes, read_file

FORMAT = "edgepeft-delivery"
UPDATE_SUFFIX, SIDECAR_SUFFIX = ".safetensors", ".sig"
MAX_SIDECAR_BYTES = 2**12

_HEX = re.compile(r"(?:[0-9a-f]{2})+")


@dataclass(frozen=True)
class Delivery:
    """A device's signed statement about an update.

    Args:
        campaign: the fleet's name.
        round: the round whose adapter the update started from.
        device: the device's name.
        sequence: number of the delivery, from 1; it is unique among the updates of a device.
        sha256: hash of the update's file.
        size: its bytes.
        algorithm: how it is signed.
        signature: hex; over everything else. Empty: not signed yet.
    """

    campaign: Name
    round: rounds.RoundNumber
    device: Name
    sequence: Annotated[int, count(canonical.LARGEST)]
    sha256: Sha256
    size: Natural
    algorithm: Annotated[str, one_of(signatures.ALGORITHMS)]
    signature: Annotated[str, Check("lower-case hexadecimal digits", _HEX.fullmatch)] = ""

    @classmethod
    def from_bytes(cls, content: bytes) -> Delivery:
        """Parse a sidecar. The content is untrusted until ``check`` has verified its signature.

        Raises:
            FleetError: it is none (``bad-sidecar``).
        """
        try:
            delivery = read_file(cls, content, "the sidecar", FORMAT)
        except BadFields as wrong:
            raise BadSidecar(wrong.message, wrong.context) from None
        if len(delivery.signature) != 2 * signatures.LENGTHS[delivery.algorithm]:
            raise BadSidecar("The signature of the sidecar is of another length.", f"algorithm {delivery.algorithm}")
        return delivery

    def to_bytes(self) -> bytes:
        """Return the canonical form."""
        return file_bytes(self, FORMAT)

    def signed(self, key: bytes) -> Delivery:
        """Return the delivery with its signature; ``key`` is the shared key, or the seed of an Ed25519 key."""
        return replace(
            self, signature=signatures.sign(signatures.UPDATE, self.signed_sha256, self.algorithm, key).hex()
        )

    @property
    def signed_sha256(self) -> str:
        """The hash that is signed: that of the canonical form without the signature."""
        fields = {name: value for name, value in vars(self).items() if name != "signature"}
        return signatures.sha256(canonical.dumps({"format": FORMAT, "version": VERSION, **fields}))

    @property
    def folder(self) -> str:
        """Its folder at a remote: ``inbox/r000012/<device>``."""
        return inbox_folder(self.round, self.device)

    def check(self, algorithm: str, key: bytes) -> None:
        """Refuse a sidecar that this key has not signed; raises ``FleetError`` (``bad-signature``)."""
        if self.algorithm != algorithm or not signatures.is_signed(
            signatures.UPDATE, self.signed_sha256, algorithm, key, bytes.fromhex(self.signature)
        ):
            raise BadSignature(
                f"The sidecar is not signed by the device {self.device}.",
                context=f"algorithm of the sidecar {self.algorithm}, of the device {algorithm}",
                hint="register the device again if it has lost its key; otherwise another party wrote it.",
            )


def inbox_folder(number: int, device: str) -> str:
    """Return the folder of a device's updates for a round, at any remote."""
    return f"{rounds.INBOX}/{rounds.folder(number)}/{device}"


def digest_of(name: str, suffix: str = UPDATE_SUFFIX) -> str | None:
    """Return the hash in the name of an update (or a sidecar), ``None`` for any other name."""
    stem = name.removesuffix(suffix)
    return stem if stem != name and HEX_64.fullmatch(stem) else None
