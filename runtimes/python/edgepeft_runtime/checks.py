"""Checks on settings that a caller passes."""

from __future__ import annotations

import numpy as np

from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.strict_json import LARGEST

MOST_THREADS = 1024
"""Most threads of an engine: onnxruntime creates all of them at once, and a million took 13 GB."""


def positive(name: str, value: object, most: int = LARGEST) -> int:
    """Return a setting that must be a whole number from 1 to ``most``; raises ``BadSetting`` for others."""
    number = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else 0
    limit = f"a whole number of at least 1, at most {most}"
    require(name, value, 1 <= number <= most, limit if number > most else "a whole number of at least 1")
    return number


def require(name: str, value: object, valid: bool, allowed: str) -> None:
    """Refuse a setting that is not ``allowed``.

    Raises:
        BadSetting: ``valid`` is false.
    """
    if not valid:
        raise BadSetting(name, value, allowed)
