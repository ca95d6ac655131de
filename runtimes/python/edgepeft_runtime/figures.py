"""Format numbers for people."""

from __future__ import annotations


def size(count: int) -> str:
    """Return a number of bytes with its unit: ``999 B``, ``12.3 kB``, ``4.5 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError  # GB has no upper limit


def percent(fraction: float | None) -> str:
    """Return a fraction (0 to 1) in percent; a dash if it is unknown."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def number(value: float | None) -> str:
    """Return a number with four digits; a dash if it is unknown."""
    return "-" if value is None else f"{value:.4g}"
