"""How much memory a compressed file may take: a bound for archives and images that somebody else made."""

from __future__ import annotations

ALWAYS = 2**26
"""Bytes that a small file may unpack to."""

RATIO = 100
"""A larger one may unpack to so many times its bytes."""


def room(packed: int) -> int:
    """Return the bytes that a file of ``packed`` bytes may unpack to."""
    return max(ALWAYS, RATIO * packed)
