"""Parse the protobuf wire format so strictly that no other parser can interpret the same bytes differently.

See https://protobuf.dev/programming-guides/encoding. Parsers differ on, or silently repair, everything that is refused
here: tags beyond 32 bits, numbers in more bytes than necessary, groups, fields of number 0, fields with another wire
type than the schema's, and repetitions of a field that is not repeated, of which some use the last and some merge all.
Fields that the schema lacks are refused too, since a later parser may know them.
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
        message: the type of the message in it; ``None`` if its bytes are not a message.
    """

    wire: int
    repeated: bool = False
    message: str | None = None


Schema = Mapping[str, Mapping[int, Field]]


def fields(data: Bytes, message: str, schema: Schema) -> Iterator[tuple[int, int | Bytes]]:
    """Yield the number and the content, an integer or bytes, of every field of a message.

    Raises:
        ValueError: the bytes are not such a message, or parsers could read them differently.
    """
    known, seen, position = schema[message], set[int](), 0
    while position < len(data):
        tag, position = varint(data, position)
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
            content, position = varint(data, position)
        else:
            length, position = varint(data, position) if wire == BYTES else (_SIZES[wire], position)
            if length > len(data) - position:
                raise ValueError(f"the field {number} of a {message} ends beyond it")
            content, position = data[position : position + length], position + length
        yield number, content


def varint(data: Bytes, start: int) -> tuple[int, int]:
    """Return an unsigned number of at most 64 bits, in the fewest bytes possible, and the position after it."""
    value = 0
    for index in range(_LONGEST):
        if start + index >= len(data):
            raise ValueError("a number ends beyond its message")
        byte = data[start + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0 and index:
                raise ValueError("a number takes more bytes than it needs")
            if value >= 2**64:
                break
            return value, start + index + 1
    raise ValueError("a number is longer than 64 bits")
