"""Parses the files of a fleet strictly, since anybody may have written them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from edgepeft_runtime.files import canonical
from edgepeft_runtime.files.schema import BadFields, Check, Json, Mark, read, write

T = TypeVar("T")

VERSION = 2
"""The version of all files of a fleet."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


def is_name(text: str) -> bool:
    """Return whether a text may name a campaign or a device. It becomes part of paths: only a..z, 0..9, - and _."""
    return _NAME.fullmatch(text) is not None


Name = Annotated[str, Check("at most 64 of a..z, 0..9, - and _", is_name)]


def count(most: int) -> Check:
    """Return the check of a number from 1 to ``most``."""
    return Check(f"a number from 1 to {most}", lambda value: 1 <= value <= most)


def read_file(kind: type[T], content: bytes, where: str, format_: str) -> T:
    """Read a file in canonical form, of the version that is known here.

    Args:
        kind: The dataclass of its fields.
        content: The file.
        where: Its name, for the messages.
        format_: The value of its field ``format``.

    Raises:
        BadFields: It is another file, or in another form.
    """
    try:
        document = read(_Document, canonical.loads_canonical(content), where)
    except ValueError as failure:  # of which UnicodeError and JSONDecodeError are kinds
        raise BadFields(f"{where} is not canonical JSON.", str(failure)[:200]) from None
    if (document.format, document.version) != (format_, VERSION):
        facts = f"found {document.format[:80]!r}, version {document.version}"
        raise BadFields(f"{where} is not {format_} of version {VERSION}.", facts)
    value = read(kind, document.fields, where)
    if file_bytes(value, format_) != content:
        raise BadFields(f"{where} has numbers in another form than its own.", f"it is not what {format_} writes")
    return value


def file_bytes(value: object, format_: str) -> bytes:
    """Return the canonical form of a file's fields."""
    return canonical.dumps({"format": format_, "version": VERSION, **write(value)})


@dataclass(frozen=True)
class _Document:
    format: str
    version: int
    fields: Annotated[Json, Mark.REST]
