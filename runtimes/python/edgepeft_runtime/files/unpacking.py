"""Limit the memory that an untrusted compressed file, such as an archive or image, may take."""

from __future__ import annotations

ALWAYS = 2**26
"""Bytes that a file of any size may decompress to."""

RATIO = 100
"""A file may decompress to this many times its size."""


def room(compressed: int) -> int:
    """Return the number of bytes that a file of ``compressed`` bytes may decompress to."""
    return max(ALWAYS, RATIO * compressed)
