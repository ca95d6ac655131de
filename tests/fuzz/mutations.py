"""Mutations of files: of their bytes, and of the structure of their format."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgepeft_runtime.files import canonical
from edgepeft_runtime.files.wire import varint
from tests.attacks.changes import joined, split, with_new_digest

Mutator = Callable[[bytes, random.Random], bytes]

_TELLING = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"0", b"9", b"-", b"e9", b"null", b"\x00", b"\xff", b"\n"]
_EDGES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1]


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: a bit, a piece cut out, doubled or moved, a number at the edge of its range, the end."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        offset, length = draw.randrange(len(changed) + 1), draw.choice((1, 2, 4, 8, 64))
        match draw.randrange(9):
            case 0:
                del changed[offset:]
            case 1:
                del changed[offset : offset + length]
            case 2:
                changed[offset:offset] = changed[offset : offset + length] * draw.choice((1, 1, 1, 50))
            case 3:
                changed[offset : offset + 1] = draw.choice(_TELLING)
            case 4:
                size = draw.choice((1, 2, 4, 8))
                edge = draw.choice(_EDGES) % 2 ** (8 * size)
                changed[offset : offset + size] = edge.to_bytes(size, draw.choice(("little", "big")))
            case 5:
                start = draw.randrange(len(changed) + 1)
                changed[offset : offset + length] = changed[start : start + length]
            case _ if offset < len(changed):
                changed[offset] ^= 1 << draw.randrange(8)
    return bytes(changed)


class Raw(float):
    """JSON as it is to be written, which Python would write otherwise or not at all."""

    text: str

    def __new__(cls, text: str) -> Raw:
        self = super().__new__(cls, 0)
        self.text = text
        return self

    def __repr__(self) -> str:
        return self.text


def _odd(draw: random.Random) -> Any:
    """A value that no field expects."""
    return draw.choice(_ODD)()


_ODD: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 1.5,
    lambda: "",
    lambda: "x" * 300,
    lambda: "\ud800",
    lambda: "../../etc/passwd",
    lambda: "\x1b[2J\x00",
    lambda: [],
    lambda: {},
    lambda: [9] * 100,
    lambda: {"a": {"b": [1]}},
    lambda: 2**31,
    lambda: 2**53 - 1,
    lambda: 2**63,
    lambda: 10**300,
    lambda: Raw("9" * 5000),
    lambda: Raw("1e999"),
    lambda: Raw("NaN"),
    lambda: Raw("[" * 2000 + "]" * 2000),
    lambda: Raw('{"a":1,"a":2}'),
]


def _positions(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value, with every key or index of it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield value, key
        yield from _positions(item)


def changed_json(value: Any, draw: random.Random) -> Any:
    """A value with one to three changes: something odd, missing, twice, renamed or in another position."""
    for _ in range(draw.randint(1, 3)):
        positions = list(_positions(value))
        if not positions:
            return _odd(draw)
        holder, key = draw.choice(positions)
        match draw.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other, index = draw.choice(positions)
                if index in other if isinstance(other, dict) else index < len(other):
                    holder[key] = json.loads(json.dumps(other[index]))
            case 2 if isinstance(holder, dict):
                holder[draw.choice(("", "x", "\ud800", "__metadata__", "a" * 200))] = holder.pop(key)
            case 3 if isinstance(holder, list):
                holder.extend(holder[:50])
            case _:
                holder[key] = _odd(draw)
    return value


def of_json(content: bytes, draw: random.Random) -> bytes:
    """The value changed, and written as a careless author would."""
    return json.dumps(changed_json(json.loads(content), draw)).encode()


def of_canonical(content: bytes, draw: random.Random) -> bytes:
    """The value changed, and written in canonical form where it has one."""
    value = changed_json(json.loads(content), draw)
    try:
        return canonical.dumps(value)
    except ValueError:
        return json.dumps(value).encode()


def of_lines(content: bytes, draw: random.Random) -> bytes:
    """One line of JSON lines changed."""
    lines = content.splitlines()
    index = draw.randrange(len(lines))
    return b"\n".join([*lines[:index], of_json(lines[index], draw), *lines[index + 1 :]])


def of_tensors(content: bytes, draw: random.Random) -> bytes:
    """The header of a tensor file changed, or JSON in its metadata, or the values; and the digest made again."""
    head, data = split(content)
    header = json.loads(head)
    inner = [name for name, text in header.get("__metadata__", {}).items() if text[:1] in ("{", "[")]
    if inner and draw.random() < 0.4:
        name = draw.choice(inner)
        text = changed_json(json.loads(header["__metadata__"][name]), draw)
        header["__metadata__"][name] = json.dumps(text)
    elif draw.random() < 0.3:
        data = of_bytes(data, draw)
    else:
        header = changed_json(header, draw)
    written = json.dumps(header, separators=(",", ":"), ensure_ascii=draw.random() < 0.5)
    return with_new_digest(joined(written.encode("utf-8", "surrogatepass"), data))


def of_protobuf(content: bytes, draw: random.Random) -> bytes:
    """One field of a message, at any depth, missing, twice, cut, of another number or type, or in more bytes."""
    pieces = list(_pieces(content))
    if not pieces:
        return of_bytes(content, draw)
    index = draw.randrange(len(pieces))
    tag, inside = pieces[index]
    if isinstance(inside, bytes) and len(inside) > 2 and draw.random() < 0.8:
        with_inner = of_protobuf(inside, draw) if _is_message(inside) else of_bytes(inside, draw)
        pieces[index] = tag, with_inner
        return b"".join(_written(*piece) for piece in pieces)
    parts = [_written(*piece) for piece in pieces]
    match draw.randrange(8):
        case 0:
            del parts[index]
        case 1:
            parts.insert(draw.randrange(len(parts) + 1), parts[index])
        case 2:
            parts[index] = _written(draw.randrange(40) << 3 | draw.randrange(8), inside)
        case 3:
            parts[index] = _longer(tag) + parts[index][len(_number(tag)) :]
        case 4:
            parts[index] = _number(tag + 2**32) + parts[index][len(_number(tag)) :]
        case 5 if isinstance(inside, bytes):
            parts[index] = _number(tag) + _number(draw.choice(_EDGES)) + inside
        case 6:
            parts[index] = _number(tag & ~7) + _number(draw.choice(_EDGES))
        case _:
            parts[index] = of_bytes(parts[index], draw)
    return b"".join(parts)


def _pieces(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Tags and contents of the fields of a message; raises ``ValueError`` where it is none."""
    offset, data = 0, memoryview(content)
    while offset < len(content):
        tag, offset = varint(data, offset)
        if tag & 7 == 0:
            number, offset = varint(data, offset)
            yield tag, number
            continue
        length, offset = varint(data, offset) if tag & 7 == 2 else ({1: 8, 5: 4}.get(tag & 7, 0), offset)
        if tag & 7 not in (1, 2, 5) or tag >> 3 == 0 or offset + length > len(content):
            raise ValueError("no message")
        yield tag, content[offset : offset + length]
        offset += length


def _is_message(content: bytes) -> bool:
    try:
        return all(tag >> 3 < 64 for tag, _ in _pieces(content))
    except ValueError:
        return False


def _written(tag: int, inside: int | bytes) -> bytes:
    if isinstance(inside, int):
        return _number(tag) + _number(inside)
    return _number(tag) + (_number(len(inside)) if tag & 7 == 2 else b"") + inside


def _number(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F)
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def _longer(value: int) -> bytes:
    """A number in one byte more than it needs."""
    short = _number(value)
    return short[:-1] + bytes([short[-1] | 0x80, 0])


def of_archive(content: bytes, draw: random.Random) -> bytes:
    """A member of an archive changed, and put back with a checksum that fits."""
    with zipfile.ZipFile(io.BytesIO(content)) as read:
        members = [[member.filename, read.read(member)] for member in read.infolist()]
    index = draw.randrange(len(members))
    if draw.random() < 0.2:
        members.append([draw.choice(("x.npy", "../x.npy", "", "x.pkl", *(str(name) for name, _ in members))), b""])
    head = draw.random() < 0.7  # where shape and dtype are
    members[index][1] = of_bytes(members[index][1][:128], draw) + members[index][1][128:] if head else b"\x93NUMPY"
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, inside in members:
            archive.writestr(str(name) or "x", inside)
    return written.getvalue()


def mixed(structured: Mutator | None) -> Mutator:
    """Changes of the structure half of the time, where a format has one, and of the bytes otherwise."""

    def mutate(content: bytes, draw: random.Random) -> bytes:
        if structured is None or draw.random() < 0.4:
            return of_bytes(content, draw)
        try:
            return structured(content, draw)
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError):  # a change that cannot be written
            return of_bytes(content, draw)

    return mutate


def inputs(corpus: Sequence[bytes], mutate: Mutator, count: int, seed: int) -> Iterator[bytes]:
    """So many changed files, always the same for a seed; the first ones are the files themselves."""
    draw = random.Random(seed)
    yield from corpus[:count]
    for _ in range(count - len(corpus)):
        yield mutate(draw.choice(corpus), draw)
