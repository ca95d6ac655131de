"""Signatures of the host, checked on devices without any library: RFC 8032's own vectors, and ``cryptography``."""

from __future__ import annotations

import random

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgepeft_runtime.fleet import ed25519

# RFC 8032, section 7.1: public key, message, signature of TEST 1, TEST 2, TEST 3 and TEST SHA(abc).
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595b"
        "be24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb430"
        "2aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716e"
        "d28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643c"
        "e80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138a"
        "c17ad9bef1177331a704",
    ),
]

ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_the_rfcs_signatures_are_good(key: str, message: str, signature: str) -> None:
    """The RFC's signatures are valid, here and for the library. With one bit changed they are not."""
    parts = bytes.fromhex(key), bytes.fromhex(message), bytes.fromhex(signature)
    assert ed25519.verify(*parts)
    assert by_library(*parts)
    assert not ed25519.verify(parts[0], parts[1] + b"\0", parts[2])


def by_library(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_we_agree_with_the_library_on_all_signatures() -> None:
    """Fifty keys, and three of each signature with a bit flipped in key, message or signature."""
    draw = random.Random(0)
    for _ in range(50):
        private = Ed25519PrivateKey.from_private_bytes(draw.randbytes(32))
        message = draw.randbytes(draw.randrange(80))
        good = [private.public_key().public_bytes_raw(), message, private.sign(message)]
        assert ed25519.verify(*good)
        for part in range(3):
            bad = list(good)
            bad[part] = flipped(bad[part] or b"\0", draw)
            assert ed25519.verify(*bad) == by_library(*bad) is False


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def test_a_second_signature_cannot_be_made_from_a_good_one() -> None:
    """S + L signs the same by the bare equation; the RFC refuses it, so a signature names one message in one way."""
    key, message, signature = (bytes.fromhex(part) for part in VECTORS[1])
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    assert not ed25519.verify(key, message, signature[:32] + scalar.to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_and_signatures_of_another_length_are_refused(length: int) -> None:
    """Nothing is read past an end, and nothing is taken for a shorter key."""
    key, message, signature = (bytes.fromhex(part) for part in VECTORS[0])
    assert not ed25519.verify(bytes(length), message, signature)
    assert not ed25519.verify(key, message, bytes(2 * length))
    assert not ed25519.verify(key, message, signature[:-1])
    assert not ed25519.verify(key, message, signature + b"\0")


def test_points_that_are_not_on_the_curve_are_refused() -> None:
    """y at or above the prime, an x without a square root, and the sign of x = 0."""
    _, message, signature = (bytes.fromhex(part) for part in VECTORS[0])
    prime = 2**255 - 19
    for encoded in (prime, prime + 1, 2, 1 + 2**255):
        key = encoded.to_bytes(32, "little")
        assert not ed25519.verify(key, message, signature)
        assert not ed25519.verify(bytes.fromhex(VECTORS[0][0]), message, key + signature[32:])
