"""JSON that two machines write alike: what is signed or hashed has one form only (section 8.1 of the SPEC)."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

LARGEST = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""


def dumps(value: Any) -> bytes:
    """The canonical form: UTF-8, keys in the order of their code points, no white space, a newline at the end."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def loads(content: bytes) -> Any:
    """Read JSON strictly.

    Raises:
        ValueError: it is not UTF-8 or not JSON, has a key twice, or holds a number that not every reader keeps.
    """
    try:
        return json.loads(
            content.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_exact,
        )
    except RecursionError:
        raise ValueError("it is nested too deep.") from None


def loads_canonical(content: bytes) -> Any:
    """:func:`loads` of what is in canonical form already, to the byte; raises ``ValueError`` otherwise."""
    value = loads(content)
    if dumps(value) != content:
        raise ValueError("it is not in canonical form: sorted keys, no white space, a newline at the end.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice.")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON.")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _exact(text: str) -> int:
    # The length first: to read a number of a million digits takes time.
    if len(text) > 17 or abs(int(text)) > LARGEST:
        raise ValueError(f"the number {text[:20]} is too large.")
    return int(text)
