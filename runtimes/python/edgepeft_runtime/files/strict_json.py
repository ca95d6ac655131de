"""JSON that every reader reads alike: what parsers differ on, or what takes unbounded work, is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from edgepeft_runtime.shown import quoted

LARGEST = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""

MAX_DEPTH = 64
"""Objects and lists inside one another."""

_MAX_DIGITS = 64
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(content: bytes | str) -> Any:
    """Read JSON strictly.

    Raises:
        ValueError: it is not UTF-8 or not JSON, is nested too deep, has a key twice, holds a number that not every
            reader keeps, or a text with half of a surrogate pair.
    """
    text = content if isinstance(content, str) else content.decode()
    _check_depth(text)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite, parse_int=_exact
        )
    except RecursionError:
        raise ValueError("it is nested too deep.") from None
    if _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def is_text(value: str) -> bool:
    """Return whether a string can be encoded: one with half of a surrogate pair, from JSON or a file's name, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for sign in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if sign in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep.")


def _check_surrogates(value: object) -> None:
    """JSON's escapes can write half of a pair, which is no text: it cannot be encoded, hashed or printed."""
    if not is_text(json.dumps(value, ensure_ascii=False)):
        raise ValueError("a text holds half of a surrogate pair.")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"the key {quoted(name)} is there twice.")
        seen.add(name)
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:_MAX_DIGITS]} is not a number of JSON.")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= _MAX_DIGITS else math.inf
    return value if math.isfinite(value) else _no_number(text)


def _exact(text: str) -> int:
    # The length first: to read a number of a million digits takes time.
    if len(text) > 17 or abs(int(text)) > LARGEST:
        raise ValueError(f"the number {text[:20]} is too large.")
    return int(text)
