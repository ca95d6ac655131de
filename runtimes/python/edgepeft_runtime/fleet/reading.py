"""Reads the files of a fleet: strictly, since anybody may have written them."""

from __future__ import annotations

import re
from collections.abc import Callable

from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.fields import Fields
from edgepeft_runtime.fleet import canonical

VERSION = 2
"""Of all files of a fleet."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
_KEY = re.compile(r"[0-9a-f]{64}")


def is_name(text: str) -> bool:
    """Whether it may name a campaign or a device: it is part of paths, so it is a..z, 0..9, ``-`` and ``_`` alone."""
    return _NAME.fullmatch(text) is not None


def open_fields(content: bytes, error: Callable[[str, str], EdgepeftError], where: str, kind: str) -> Fields:
    """The fields of a file in canonical form, of the kind and version that are known here.

    Args:
        content: the file.
        error: makes the error of a wrong field from a message and a context.
        where: its name, for the messages.
        kind: what its field ``format`` must say.
    """
    try:
        fields = Fields(canonical.loads_canonical(content), where, error)
    except ValueError as failure:  # of which UnicodeError and JSONDecodeError are kinds
        raise error(f"{where} is not canonical JSON.", str(failure)[:200]) from None
    found = fields.take("format", str), fields.take("version", int)
    if found != (kind, VERSION):
        raise error(f"{where} is not {kind} of version {VERSION}.", f"found {found[0][:80]!r}, version {found[1]}")
    return fields


def name_field(fields: Fields, name: str) -> str:
    """The name of a campaign or a device."""
    value = fields.take(name, str)
    if not is_name(value):
        raise fields.wrong(name, "at most 64 of a..z, 0..9, - and _", value)
    return value


def count_field(fields: Fields, name: str, most: int) -> int:
    """A number from 1 to ``most``."""
    value = fields.take(name, int)
    if not 1 <= value <= most:
        raise fields.wrong(name, f"a number from 1 to {most}", value)
    return value


def natural_or_null(fields: Fields, name: str) -> int | None:
    """An integer of at least 0, or ``null``; it must be there."""
    value = fields.take(name, int, None)
    if value is not None and value < 0:
        raise fields.wrong(name, "an integer of at least 0", value)
    return value


def digest_or_null(fields: Fields, name: str) -> str | None:
    """A SHA-256 in lower-case hex, or ``null``; it must be there."""
    value = fields.take(name, str, None)
    if value is not None and not _KEY.fullmatch(value):
        raise fields.wrong(name, "64 lower-case hexadecimal digits", value)
    return value


def key_field(fields: Fields, name: str) -> bytes:
    """32 bytes in hex."""
    value = fields.take(name, str)
    if not _KEY.fullmatch(value):
        # Not what was found: it may be most of a key.
        raise fields.wrong(name, "64 lower-case hexadecimal digits", f"{len(value)} characters")
    return bytes.fromhex(value)
