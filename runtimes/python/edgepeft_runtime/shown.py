"""Format untrusted values and texts for messages: short and printable, at a cost that does not grow with their size."""

from __future__ import annotations

import reprlib

MAX_TEXT = 8_000
"""Largest number of characters of a message or a context; longer ones are truncated."""


class _Short(reprlib.Repr):
    """``repr`` of the first items of the first levels."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 2, 6, 6, 4
        self.maxstring, self.maxlong, self.maxother = 80, 40, 80

    def repr_int(self, value: int, level: int) -> str:  # noqa: ARG002  (the signature is reprlib's)
        # Digits of a large integer take quadratic time, and Python refuses to write more than 4,300 of them.
        return repr(value) if value.bit_length() <= 128 else f"<integer of {value.bit_length()} bits>"

    def repr_bytes(self, value: bytes, level: int) -> str:
        return self.repr_str(value[: self.maxstring].decode("latin-1"), level)


_SHORT = _Short()


def quoted(value: object) -> str:
    """Return the shortened ``repr`` of an untrusted value."""
    return _SHORT.repr(value)


def shortened(text: str, most: int = MAX_TEXT) -> str:
    """Return a text truncated to ``most`` characters, with the number of characters left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more characters)"


def printable(text: str, keep: str = "\n\t") -> str:
    """Return the text with all characters escaped that are not printable, except those of ``keep``."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in keep else repr(sign)[1:-1] for sign in text)
