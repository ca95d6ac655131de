"""Read and write frozen dataclasses as JSON, strictly, by the annotations of their fields.

Fields may be ``int``, ``float`` (which accepts integers), ``str``, ``bool``, ``bytes`` (32, in hex), ``X | None``,
``tuple[X, ...]``, ``dict[str, X]`` and other dataclasses. ``Annotated`` adds a ``Check`` of the value, or a
``Mark`` of how the field is represented.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from itertools import islice
from types import MappingProxyType, NoneType
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from edgepeft_runtime.files.shapes import MAX_AXES
from edgepeft_runtime.shown import quoted

T = TypeVar("T")
Json: TypeAlias = dict[str, Any]
_Reader: TypeAlias = Callable[[object, str], object]


class Mark(Enum):
    """How a field is represented in the JSON object of its dataclass."""

    OPTIONAL = "It may be missing or null, which means its default."
    OMITTED = "Like OPTIONAL, and it is not written if it is None."
    REST = "It collects all fields of the object that are not declared."
    APART = "It is not part of the JSON; the caller of read passes it."
    NOT_FINITE = "A number that is not finite is written as NaN, Infinity or -Infinity in quotes."


@dataclass(frozen=True)
class Check:
    """A condition on a value beyond its type: a description and a predicate."""

    expected: str
    accepts: Callable[[Any], object]


def one_of(choices: Iterable[str]) -> Check:
    """Return the check of a string among ``choices``."""
    known = tuple(choices)
    return Check(f"one of {', '.join(known)}", known.__contains__)


Natural = Annotated[int, Check("an integer of at least 0", lambda value: value >= 0)]
HEX_64 = re.compile(r"[0-9a-f]{64}")
_HEX = "64 lower-case hexadecimal digits"
Sha256 = Annotated[str, Check(_HEX, HEX_64.fullmatch)]
_AXES = Check(f"a list of at most {MAX_AXES} sizes and names", lambda value: len(value) <= MAX_AXES)
Shape = Annotated[tuple[Natural | str, ...], _AXES]
Sizes = Annotated[tuple[Natural, ...], _AXES]


class _Mismatch(Exception):
    """A value does not match its field. The text describes the expected value; ``found`` replaces a secret value."""

    def __init__(self, expected: str, found: str | None = None) -> None:
        super().__init__(expected)
        self.found = found


class BadFields(Exception):
    """A value does not have the fields of its dataclass: a message and a context, for an error of the catalogue."""

    def __init__(self, message: str, context: str) -> None:
        super().__init__(message, context)
        self.message, self.context = message, context


def read(kind: type[T], value: object, where: str, **apart: object) -> T:
    """Read a dataclass from plain JSON values.

    Args:
        kind: The dataclass.
        value: Its JSON object, without missing or unknown fields.
        where: Name of the document for messages, such as ``manifest.json``.
        apart: Values of the fields that are not part of the JSON.

    Raises:
        BadFields: Something else is there. The caller raises the error of its kind of document.
    """
    return _object(kind, value, where, apart)  # type: ignore[no-any-return]  # an instance of kind


def write(value: object) -> Any:
    """Return a dataclass as plain JSON values, from which ``read`` makes an equal one."""
    if isinstance(value, Mapping):
        return {name: write(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [write(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return _written(value) if is_dataclass(value) else value


def _written(value: object) -> Json:
    written: Json = {}
    kind: Any = type(value)
    for name, _, marks in _fields(kind):
        item = getattr(value, name)
        if Mark.REST in marks:
            written |= write(item)
        elif Mark.NOT_FINITE in marks and item is not None and not math.isfinite(item):
            written[name] = str(item).replace("inf", "Infinity").replace("nan", "NaN")
        elif Mark.APART not in marks and not (Mark.OMITTED in marks and item is None):
            written[name] = write(item)
    return written


@cache
def _fields(kind: type) -> tuple[tuple[str, Any, tuple[object, ...]], ...]:
    """Name, annotation and marks of each field."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple((name, hints[name], get_args(hints[name])[1:]) for name in (field.name for field in fields(kind)))


@cache
def _reader(hint: Any) -> _Reader:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if Mark.NOT_FINITE in arguments:
            return _number
        return partial(_checked, _reader(arguments[0]), tuple(c for c in arguments[1:] if isinstance(c, Check)))
    if is_dataclass(hint):
        return partial(_object, hint)
    if origin is tuple:
        return partial(_list, _reader(arguments[0]), None if arguments[-1] is Ellipsis else len(arguments))
    if origin in (dict, Mapping):
        return partial(_map, _reader(arguments[1]))
    if arguments:  # a union
        readers = tuple(_reader(argument) for argument in arguments if argument is not NoneType)
        return partial(_any_of, readers, NoneType in arguments)
    return partial(_plain, hint)


def _plain(kind: Any, value: object, _: str) -> object:
    if kind in (Any, object):
        return value
    if kind is bytes:
        return _key(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _Mismatch(kind.__name__)
    return value


def _number(value: object, where: str) -> object:
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    return None if value is None else _plain(float, value, where)


def _key(value: object) -> bytes:
    if not isinstance(value, str) or not HEX_64.fullmatch(value):
        # The value itself is not quoted: it may be most of a secret key.
        raise _Mismatch(_HEX, f"{len(value)} characters" if isinstance(value, str) else type(value).__name__)
    return bytes.fromhex(value)


def _checked(reader: _Reader, checks: tuple[Check, ...], value: object, where: str) -> object:
    read = reader(value, where)
    for check in checks:
        if not check.accepts(read):
            raise _Mismatch(check.expected)
    return read


def _any_of(readers: tuple[_Reader, ...], nullable: bool, value: object, where: str) -> object:
    if value is None and nullable:
        return None
    expected = []
    for reader in readers:
        try:
            return reader(value, where)
        except _Mismatch as mismatch:
            expected.append(str(mismatch))
    raise _Mismatch(" or ".join(expected))


def _list(item: _Reader, length: int | None, value: object, where: str) -> object:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise _Mismatch("a list" if length is None else f"a list of {length}")
    try:
        return tuple(item(entry, f"{where}[{index}]") for index, entry in enumerate(value))
    except _Mismatch as mismatch:
        raise _Mismatch(f"a list, each {mismatch}") from None


def _map(item: _Reader, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise _Mismatch("an object")
    try:
        return {key: item(entry, f"{where}[{quoted(key)}]") for key, entry in value.items()}
    except _Mismatch as mismatch:
        raise _Mismatch(f"an object, each {mismatch}") from None


def _object(kind: Any, value: object, where: str, apart: Mapping[str, object] = MappingProxyType({})) -> Any:
    if not isinstance(value, dict):
        raise BadFields(f"{where} is not a JSON object.", f"found {quoted(value)}")
    left, read = dict(value), {}
    rest = None
    for name, hint, marks in _fields(kind):
        if Mark.REST in marks:
            rest = name
        elif Mark.APART in marks:
            read[name] = apart[name]
        elif left.get(name) is None and not {Mark.OPTIONAL, Mark.OMITTED}.isdisjoint(marks):
            left.pop(name, None)
        elif name not in left:
            raise BadFields(f"{where} lacks the field {name!r}.", f"found {_listed(left)}")
        else:
            read[name] = _field(name, hint, left.pop(name), where)
    if rest is not None:
        read[rest] = left
    elif left:
        raise BadFields(f"{where} has unknown fields.", f"unknown: {_listed(left)}")
    return kind(**read)


def _field(name: str, hint: Any, value: object, where: str) -> object:
    try:
        return _reader(hint)(value, f"{where}: {name}")
    except _Mismatch as mismatch:
        facts = f"expected {mismatch}, found {mismatch.found or quoted(value)}"
        raise BadFields(f"{where}: the field {name!r} is wrong.", facts) from None


def _listed(names: Iterable[str]) -> str:
    some = list(islice(names, 9))
    return ", ".join(map(quoted, some[:8])) + (", …" if len(some) > 8 else "") or "nothing"
