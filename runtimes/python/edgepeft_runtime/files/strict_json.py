"""Parse JSON strictly: input that parsers interpret differently, or that takes unbounded work, is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from edgepeft_runtime.shown import quoted

LARGEST = 2**53 - 1
"""The largest integer that every JSON parser represents exactly."""

MAX_DEPTH = 64
"""Largest depth of nested objects and lists."""

_MAX_DIGITS = 64
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(content: bytes | str) -> Any:
    """Read JSON strictly.

    Raises:
        ValueError: it is not UTF-8 or not JSON, is nested too deeply, repeats a key, or contains a number that not
            every parser represents exactly, or half of a surrogate pair.
    """
    text = content if isinstance(content, str) else content.decode()
    _check_depth(text)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite, parse_int=_exact
        )
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None
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
    """Refuse half of a surrogate pair, which JSON's escapes can produce but which cannot be encoded or printed."""
    if not is_text(json.dumps(value, ensure_ascii=False)):
        raise ValueError("a text contains half of a surrogate pair.")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) == len(pairs):
        return unique
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"the key {quoted(name)} appears twice.")
        seen.add(name)
    return unique


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:_MAX_DIGITS]} is not a JSON number.")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= _MAX_DIGITS else math.inf
    return value if math.isfinite(value) else _no_number(text)


def _exact(text: str) -> int:
    # The length is checked first, since parsing a number of a million digits takes time.
    if len(text) > 17 or abs(int(text)) > LARGEST:
        raise ValueError(f"the number {text[:20]} is too large.")
    return int(text)
