"""Tensor files taken apart and put together, and changes at random."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from edgepeft_runtime.files.tensorfile import DIGEST_LENGTH
from edgepeft_runtime.fleet import signatures

MUTATIONS = 10_000
"""How often each file is changed at random; see ``tests/test_attacks.py``."""

MUTATED = {
    "an update, signed by its device after the change": "refused; the digest or the header gives it away",
    "the header of an update, its digest and signature made again": "refused, or the same tensors to the bit",
    "a sidecar": "refused",
    "`latest.json`, `latest.sig` and `round.json`, in turn": "refused; the device stays where it is",
}
"""A random change, and its expected result."""

_TELLING = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"0", b"9", b"-", b"e9", b"null", b"\x00", b"\xff"]


def mutations(content: bytes, seed: int, count: int = MUTATIONS) -> Iterator[bytes]:
    """Random changes of a file, never the file itself; always the same for a seed."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        changed = _mutated(content, draw)
        if changed != content:
            made += 1
            yield changed


def _mutated(content: bytes, draw: random.Random) -> bytes:
    """One to three changes: a bit flipped, a piece cut out or doubled, JSON's own signs put in, the end cut off."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        offset, length = draw.randrange(len(changed) + 1), draw.randint(1, 8)
        match draw.randrange(8):
            case 0:
                del changed[offset:]
            case 1:
                del changed[offset : offset + length]
            case 2:
                changed[offset:offset] = changed[offset : offset + length]
            case 3 | 4:
                changed[offset : offset + 1] = draw.choice(_TELLING)
            case _ if offset < len(changed):
                changed[offset] ^= 1 << draw.randrange(8)
    return bytes(changed)


def split(content: bytes) -> tuple[bytes, bytes]:
    """The header and the data of a tensor file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def joined(header: bytes, data: bytes = b"") -> bytes:
    """A tensor file of a header and data."""
    return len(header).to_bytes(8, "little") + header + data


def header_of(content: bytes) -> dict[str, Any]:
    """The header of a tensor file."""
    header: dict[str, Any] = json.loads(split(content)[0])
    return header


def with_new_digest(content: bytes) -> bytes:
    """The content with the digest that it should have, if it has a field for one."""
    found = re.search(rb'"digest": ?"', content)
    if found is None or len(content) < found.end() + DIGEST_LENGTH:
        return content
    offset = found.end()
    bare = content[:offset] + b"0" * DIGEST_LENGTH + content[offset + DIGEST_LENGTH :]
    return content[:offset] + signatures.sha256(bare).encode() + content[offset + DIGEST_LENGTH :]
