"""Canonical JSON: signed or hashed content has exactly one form (SPEC, section 8.1)."""

from __future__ import annotations

import json

from edgepeft_runtime.files import strict_json

LARGEST = strict_json.LARGEST


def dumps(value: object) -> bytes:
    """Return the canonical form: UTF-8, keys in order of code points, no white space, a newline at the end."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def loads_canonical(content: bytes) -> object:
    """Parse JSON in canonical form; raises ``ValueError`` for any other content (see ``strict_json``)."""
    value = strict_json.loads(content)
    if dumps(value) != content:
        raise ValueError("it is not in canonical form: sorted keys, no white space, a newline at the end.")
    return value
