"""The protobuf wire format, read so strictly that no other parser can read the same bytes otherwise.

https://protobuf.dev/programming-guides/encoding. Parsers differ on, or quietly mend, what is refused here: tags beyond
32 bits, numbers in more bytes than they need, groups, fields of number 0, fields of another wire type than the
schema's, and a field twice that a message has once: some take the last, some merge the two. Fields that the schema
lacks are refused too, since a later parser may know them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Bytes = memoryview

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIZES = {FIXED64: 8, FIXED32: 4}
_LONGEST = 10


@dataclass(frozen=True)
class Field:
    """A field of a schema.

    Args:
        wire: its wire type.
        repeated: whether a message may have it more than once; numbers may then be packed into bytes.
        message: the message in it, as the schema calls it; ``None`` where the bytes are taken as they are.
    """

    wire: int
    repeated: bool = False
    message: str | None = None


Schema = Mapping[str, Mapping[int, Field]]


def fields(data: Bytes, message: str, schema: Schema) -> Iterator[tuple[int, int | Bytes]]:
    """Yield number and content of every field of a message: an integer, or bytes.

    Raises:
        ValueError: the bytes are no such message, or parsers could read them differently.
    """
    known, seen, place = schema[message], set[int](), 0
    while place < len(data):
        tag, place = varint(data, place)
        number, wire = tag >> 3, tag & 7
        field = known.get(number)
        if tag >= 2**32 or field is None:
            raise ValueError(f"a {message} has the field {number}, which is not in its schema")
        if wire != field.wire and not (field.repeated and wire == BYTES):
            raise ValueError(f"the field {number} of a {message} has the wire type {wire}, not {field.wire}")
        if number in seen and not field.repeated:
            raise ValueError(f"a {message} has the field {number} twice")
        seen.add(number)
        content: int | Bytes
        if wire == VARINT:
            content, place = varint(data, place)
        else:
            length, place = varint(data, place) if wire == BYTES else (_SIZES[wire], place)
            if length > len(data) - place:
                raise ValueError(f"the field {number} of a {message} ends beyond it")
            content, place = data[place : place + length], place + length
        yield number, content


def varint(data: Bytes, place: int) -> tuple[int, int]:
    """Return an unsigned number of at most 64 bits, in as few bytes as hold it, and where the next one begins."""
    value = 0
    for index in range(_LONGEST):
        if place + index >= len(data):
            raise ValueError("a number ends beyond its message")
        byte = data[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0 and index:
                raise ValueError("a number takes more bytes than it needs")
            if value >= 2**64:
                break
            return value, place + index + 1
    raise ValueError("a number is longer than 64 bits")
