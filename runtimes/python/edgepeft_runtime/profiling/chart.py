"""Charts as SVG: bars in parts, and the memory of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from edgepeft_runtime.figures import size
from edgepeft_runtime.profiling.summary import Point, Row

WIDTH = 920
_LABEL, _VALUE, _LINE, _BAR = 230, 120, 22, 15
_HEIGHT, _LEFT, _BELOW = 200, 70, 24
_MOST_POINTS = 2_000


def bars(rows: Sequence[Row], colors: Mapping[str, str], text: Mapping[str, str]) -> str:
    """Return one bar for each row.

    Args:
        rows: their parts are drawn one after the other; a row without parts is one part, of the first color.
        colors: of the parts, in the order in which they are drawn.
        text: the text after the bar of each row.
    """
    longest = max((row.seconds for row in rows), default=0.0) or 1.0
    scale = (WIDTH - _LABEL - _VALUE) / longest
    drawn = "".join(_bar(row, index * _LINE, scale, colors, text[row.name]) for index, row in enumerate(rows))
    return _svg(len(rows) * _LINE, drawn, "A bar for each row, as long as its time")


def _bar(row: Row, top: int, scale: float, colors: Mapping[str, str], text: str) -> str:
    parts = row.parts or {next(iter(colors)): row.seconds}
    middle = top + _LINE / 2 + 4
    drawn, left = [_text(_LABEL - 8, middle, row.name, "end")], float(_LABEL)
    for part, color in colors.items():
        width = parts.get(part, 0.0) * scale
        if width > 0:
            title = f"{row.name}: {part} {1e3 * parts[part]:.3f} ms"
            drawn.append(_rect(left, top + (_LINE - _BAR) / 2, width, _BAR, color, title))
            left += width
    return "".join((*drawn, _text(left + 6, middle, text)))


def memory(points: Sequence[Point]) -> str:
    """Return the bytes in use over the time of a step, with the block at each moment as a tooltip."""
    last, most = points[-1].seconds or 1.0, max(point.in_use for point in points) or 1
    across, up = (WIDTH - _LEFT) / last, (_HEIGHT - 20) / most
    drawn = [_text(_LEFT - 8, 24, size(most), "end"), _text(_LEFT - 8, _HEIGHT, "0", "end")]
    drawn += [
        _text(_LEFT, _HEIGHT + _BELOW - 4, "0 ms"),
        _text(WIDTH, _HEIGHT + _BELOW - 4, f"{1e3 * last:.1f} ms", "end"),
    ]
    left = float(_LEFT)
    for point, block in _columns(points):
        right = _LEFT + point.seconds * across
        height = point.in_use * up
        title = f"{block}: {size(point.in_use)}"
        drawn.append(_rect(left, _HEIGHT - height, max(right - left, 0.2), height, "#3b7ea1", title))
        left = right
    return _svg(_HEIGHT + _BELOW, "".join(drawn), "Memory over the time of a step")


def _columns(points: Sequence[Point]) -> Iterable[tuple[Point, str]]:
    """Yield the points, or the highest of several that are drawn as one."""
    step = -(-len(points) // _MOST_POINTS)
    for start in range(0, len(points), step):
        some = points[start : start + step]
        highest = max(some, key=lambda point: point.in_use)
        yield Point(some[-1].seconds, highest.in_use, highest.block), highest.block


def _svg(height: int, drawn: str, label: str) -> str:
    """Return a picture that keeps the size of its letters on a narrow screen, where it scrolls."""
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{drawn}</svg>'
    return f'<div class="scroll" tabindex="0">{svg}</div>'


def _rect(left: float, top: float, width: float, height: float, color: str, title: str) -> str:
    at = f'x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{color}"'
    return f"<rect {at}><title>{escape(title)}</title></rect>"


def _text(left: float, top: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{escape(_short(text))}</text>'


def _short(text: str, most: int = 34) -> str:
    """Return a name without its middle, so that it fits."""
    half = most // 2 - 1
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
