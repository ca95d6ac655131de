"""Signatures over hashes, each for one purpose: a signature of a round never passes for one of an update.

The signed text is ``<domain>\\n<SHA-256 in hex>\\n``. The host signs with Ed25519. A device signs with
HMAC-SHA256 under a key that it shares with the host, or with Ed25519, where it has ``cryptography``.
"""

from __future__ import annotations

import hashlib
import hmac
from importlib.util import find_spec

from edgepeft_runtime.errors import MissingExtra
from edgepeft_runtime.fleet import ed25519

LATEST = "edgepeft/latest/v2"
UPDATE = "edgepeft/update/v2"

ED25519, HMAC = "ed25519", "hmac-sha256"
ALGORITHMS = (HMAC, ED25519)
LENGTHS = {ED25519: 64, HMAC: 32}
"""Bytes of a signature."""


def sign(domain: str, digest: str, algorithm: str, key: bytes) -> bytes:
    """Sign a hash.

    Args:
        domain: purpose of the signature, ``LATEST`` or ``UPDATE``.
        digest: SHA-256 of the signed content, lower-case hex.
        algorithm: one of ``ALGORITHMS``.
        key: 32 bytes: the shared key, or the seed of an Ed25519 key (RFC 8032, section 5.1.5).

    Raises:
        FleetError: Ed25519 is requested, but ``cryptography`` is not installed.
    """
    message = _message(domain, digest)
    if algorithm == HMAC:
        return hmac.digest(key, message, "sha256")
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(key).sign(message)


def is_signed(domain: str, digest: str, algorithm: str, key: bytes, signature: bytes) -> bool:
    """Return whether the signature is that of the hash; ``key`` is the shared or the public key, 32 bytes."""
    message = _message(domain, digest)
    if algorithm == HMAC:
        return hmac.compare_digest(hmac.digest(key, message, "sha256"), signature)
    return _is_signed_by_library(key, message, signature) if _installed() else ed25519.verify(key, message, signature)


def public_key(seed: bytes) -> bytes:
    """Return the public key (32 bytes) of an Ed25519 seed."""
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def sha256(content: bytes) -> str:
    """Return the SHA-256 in lower-case hex."""
    return hashlib.sha256(content).hexdigest()


def _message(domain: str, digest: str) -> bytes:
    return f"{domain}\n{digest}\n".encode()


def _installed() -> bool:
    return find_spec("cryptography") is not None


def _is_signed_by_library(key: bytes, message: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _need_cryptography() -> None:
    if not _installed():
        raise MissingExtra(
            "Signing with Ed25519 needs the package cryptography, which is not installed.",
            context=None,
            hint="pip install cryptography; a device can do without, if it is registered with --algorithm hmac-sha256.",
        )
