"""Reads JSON objects field by field and says which field is wrong; no field is missed, none is left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar, overload

from edgepeft_runtime.errors import BadManifest, EdgepeftError
from edgepeft_runtime.files.shapes import MAX_AXES
from edgepeft_runtime.shown import quoted

T = TypeVar("T")
D = TypeVar("D")

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_REQUIRED = object()
_HASH = re.compile(r"[0-9a-f]{64}")


class Fields:
    """A JSON object that is being read.

    Args:
        value: what should be an object.
        where: its place in the manifest, for the messages.
        error: makes the error of a wrong field from a message and a context.
    """

    def __init__(self, value: Any, where: str, error: Callable[[str, str], EdgepeftError] = BadManifest) -> None:
        if not isinstance(value, dict):
            raise error(f"{where} is not a JSON object.", f"found {quoted(value)}")
        self._left = dict(value)
        self._where = where
        self._error = error

    @overload
    def take(self, name: str, kind: type[T]) -> T: ...
    @overload
    def take(self, name: str, kind: type[T], null: None) -> T | None: ...
    def take(self, name: str, kind: type[T], null: T | object | None = _REQUIRED) -> T | None:
        """The value of a field, which must be of ``kind``, or may be JSON ``null`` where ``None`` is passed too."""
        if name not in self._left:
            raise self._error(f"{self._where} lacks the field {name!r}.", f"found {_listed(self._left)}")
        value = self._left.pop(name)
        if value is None and null is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, kind.__name__, value)
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """The value of a field that may be missing or ``null``."""
        return self.take(name, kind, None) if name in self._left else None

    def is_null(self, name: str) -> bool:
        """Whether a field is ``null`` or missing; if so it is done with."""
        return self._left.get(name) is None and self._left.pop(name, None) is None

    def natural(self, name: str) -> int:
        """An integer of at least 0."""
        value = self.take(name, int)
        if value < 0:
            raise self.wrong(name, "an integer of at least 0", value)
        return value

    def number(self, name: str) -> float:
        """A float, or an integer in its place."""
        value = self._left.get(name)
        return float(self.take(name, int)) if isinstance(value, int) else self.take(name, float)

    def number_or_null(self, name: str) -> float | None:
        """:meth:`number`, a text for one that is not finite, or ``null``; it must be there."""
        value = self._left.get(name)
        if isinstance(value, str):
            return float(self.one_of(name, NOT_FINITE))
        return self.take(name, float, None) if value is None else self.number(name)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of ``length`` numbers."""
        value = self.take(name, list)
        if len(value) != length or not all(type(item) in (int, float) for item in value):
            raise self.wrong(name, f"{length} numbers", value)
        return tuple(value)

    def texts(self, name: str) -> list[str]:
        """A list of strings."""
        value = self.take(name, list)
        if not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings", value)
        return value

    def one_of(self, name: str, choices: Sequence[str]) -> str:
        """A string among ``choices``."""
        value = self.take(name, str)
        if value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}", value)
        return value

    def sha256(self, name: str) -> str:
        """A SHA-256 in lower-case hex."""
        value = self.take(name, str)
        if not _HASH.fullmatch(value):
            raise self.wrong(name, "64 lower-case hexadecimal digits", value)
        return value

    def shape(self) -> tuple[int | str, ...]:
        """The field ``shape``: sizes of at least 0 and names of symbolic dimensions."""
        value = self.take("shape", list)
        if len(value) > MAX_AXES or not all(isinstance(dim, str) or (type(dim) is int and dim >= 0) for dim in value):
            raise self.wrong("shape", f"a list of at most {MAX_AXES} sizes and names", value)
        return tuple(value)

    def part(self, name: str) -> Fields:
        """A field that is an object itself."""
        return Fields(self.take(name, dict), f"{self._where}: {name}", self._error)

    def part_or_null(self, name: str) -> Fields | None:
        """Return a field that is an object itself, or ``null``; it must be there."""
        value = self.take(name, dict, None)
        return None if value is None else Fields(value, f"{self._where}: {name}", self._error)

    def list_of(self, name: str) -> Iterator[Fields]:
        """A field that is a list of objects, each read whole before the next."""
        for index, item in enumerate(self.take(name, list)):
            fields = Fields(item, f"{self._where}: {name}[{index}]", self._error)
            yield fields
            fields.finish()

    def map_of(self, name: str) -> Iterator[tuple[str, Fields]]:
        """A field that maps names to objects, each read whole before the next."""
        for key, item in self.take(name, dict).items():
            fields = Fields(item, f"{self._where}: {name}[{quoted(key)}]", self._error)
            yield key, fields
            fields.finish()

    def rest(self) -> dict[str, Any]:
        """All fields that were not read yet."""
        rest, self._left = self._left, {}
        return rest

    def finish(self) -> None:
        """Refuse what was not read: a misspelt field must not be ignored."""
        if self._left:
            raise self._error(f"{self._where} has fields that are not known.", f"unknown: {_listed(self._left)}")

    def wrong(self, name: str, expected: str, found: Any) -> EdgepeftError:
        """The error of a field with a wrong value."""
        return self._error(
            f"{self._where}: the field {name!r} is wrong.", f"expected {expected}, found {quoted(found)}"
        )


def _listed(names: Iterable[str]) -> str:
    some = list(islice(names, 9))
    return ", ".join(map(quoted, some[:8])) + (", …" if len(some) > 8 else "") or "nothing"
