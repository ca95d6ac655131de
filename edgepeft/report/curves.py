"""Curves over the epochs, as SVG in the colors of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from edgepeft_runtime.figures import number

WIDTH, HEIGHT = 920, 260
_LEFT, _RIGHT, _TOP, _BELOW = 64, 16, 14, 30
_GRID = 4

Values = Sequence[float | None]


def curves(epochs: Sequence[int], lines: Mapping[str, Values], kept: int | None = None, fractions: bool = False) -> str:
    """Return one line for each name over the epochs, with a marker on the epoch whose adapter was kept.

    Args:
        epochs: One number per value.
        lines: Values by name; ``None`` and values that are not finite leave a gap.
        kept: Index of the kept record.
        fractions: Whether the values are fractions, so that the picture is from 0 to 1.
    """
    finite = [value for values in lines.values() for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    if fractions:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = low - 0.5, high + 0.5
    step = _step(high - low)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    scale = _Scale(min(epochs), max(max(epochs), min(epochs) + 1), low, high)
    drawn = [_grid(scale, step), _ticks(epochs, scale)]
    for index, (name, values) in enumerate(lines.items()):
        points = [
            (scale.x(epoch), scale.y(value), f"{name}, epoch {epoch}: {number(value)}", row == kept)
            for row, (epoch, value) in enumerate(zip(epochs, values, strict=True))
            if value is not None and math.isfinite(value)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
        drawn.append(f'<polyline class="line line{index}" points="{path}"/>')
        drawn += [_point(index, *point) for point in points]
    names = escape(" and ".join(lines))
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{names} by epoch">{"".join(drawn)}</svg>'
    return f'<div class="scroll" tabindex="0">{svg}</div>'


class _Scale:
    """Maps epochs and values to the picture."""

    def __init__(self, first: int, last: int, low: float, high: float) -> None:
        self.first, self.last, self.low, self.high = first, last, low, high

    def x(self, epoch: float) -> float:
        return _LEFT + (epoch - self.first) / (self.last - self.first) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - _TOP - _BELOW)


def _step(span: float) -> float:
    """The distance of grid lines: 1, 2, 2.5 or 5 times a power of ten, so that at most five of them are on the span."""
    power = 10.0 ** math.floor(math.log10(span / _GRID))
    return next((factor * power for factor in (1, 2, 2.5, 5) if span / (factor * power) <= _GRID), 10 * power)


def _grid(scale: _Scale, step: float) -> str:
    lines = []
    for index in range(round((scale.high - scale.low) / step) + 1):
        value = float(f"{scale.low + index * step:.9g}")  # without the rounding of sums
        y = scale.y(value)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    return "".join(lines)


def _ticks(epochs: Sequence[int], scale: _Scale) -> str:
    every = max(1, -(-len(epochs) // 12))
    ticks = [f'<text x="{scale.x(e):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{e}</text>' for e in epochs[::every]]
    return "".join(ticks)


def _point(index: int, x: float, y: float, title: str, kept: bool) -> str:
    at = f'class="dot line{index}" cx="{x:.1f}" cy="{y:.1f}" r="{5 if kept else 2.5}"'
    return f"<circle {at}><title>{escape(title)}{' (kept)' if kept else ''}</title></circle>"
