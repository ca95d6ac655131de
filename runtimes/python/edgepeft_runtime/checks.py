"""Checks on settings that a caller passes."""

from __future__ import annotations

import numpy as np

from edgepeft_runtime.errors import BadSetting


def positive(name: str, value: object) -> int:
    """Return a setting that must be a whole number of at least 1; raises ``BadSetting`` for others."""
    number = int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else 0
    require(name, value, number >= 1, "a whole number of at least 1")
    return number


def require(name: str, value: object, valid: bool, allowed: str) -> None:
    """Refuse a setting that is not ``allowed``.

    Raises:
        BadSetting: ``valid`` is false.
    """
    if not valid:
        raise BadSetting(name, value, allowed)
