"""Numbers for people."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes: ``999 B``, ``12.3 kB``, ``4.5 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError  # the last unit takes everything


def percent(share: float | None) -> str:
    """Return a fraction of 0 to 1 in percent; a dash if it is unknown."""
    return "-" if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    """A loss with four digits; a dash where it is not known."""
    return "-" if value is None else f"{value:.4g}"
