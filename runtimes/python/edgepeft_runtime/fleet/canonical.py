"""JSON that two machines write alike: what is signed or hashed has one form only (section 8.1 of the SPEC)."""

from __future__ import annotations

import json
from typing import Any

from edgepeft_runtime.files import strict_json

LARGEST = strict_json.LARGEST


def dumps(value: Any) -> bytes:
    """The canonical form: UTF-8, keys in the order of their code points, no white space, a newline at the end."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def loads_canonical(content: bytes) -> Any:
    """Read JSON in canonical form; raises ``ValueError`` where it is in another, or none (see :mod:`strict_json`)."""
    value = strict_json.loads(content)
    if dumps(value) != content:
        raise ValueError("it is not in canonical form: sorted keys, no white space, a newline at the end.")
    return value
