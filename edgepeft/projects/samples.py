"""Sample data of the projects, the same each time: messages, drawings, and readings of a sensor."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_OPENINGS = ("Hello,", "Good morning,", "Hi there,", "Please help:", "Dear team,", "One question:", "")
_CLOSINGS = ("Thanks.", "Please reply soon.", "What can I do?", "This is the second time.", "")
_MESSAGES = {
    "billing": ("the invoice is wrong", "I was charged twice", "the refund has not arrived", "my card was declined"),
    "delivery": ("the parcel is late", "the box arrived broken", "the courier never came", "the address is wrong"),
    "account": ("I forgot my password", "the login fails", "please delete my profile", "the code never arrives"),
}
_SIDE = 16


def write_texts(folder: Path) -> None:
    """Write ``data.csv`` and ``held_out.csv``: messages to a support team, and what they are about."""
    draw = random.Random(0)
    rows = [
        (" ".join(filter(None, (opening, message, *closing))), label)
        for label, messages in _MESSAGES.items()
        for message in messages
        for opening in _OPENINGS
        for closing in [(f"{draw.choice(_CLOSINGS)}",)]
    ]
    draw.shuffle(rows)
    _write_split(folder, ("text", "label"), rows)


def write_rows(folder: Path) -> None:
    """Write ``data.csv`` and ``held_out.csv``: readings of a pump, and its state."""
    draw = np.random.default_rng(0)
    states = {"good": (55.0, 1.2, 3.1), "worn": (63.0, 2.4, 3.3), "blocked": (71.0, 1.6, 5.2)}
    rows = [
        (f"{temperature:.1f}", f"{vibration:.2f}", f"{current:.2f}", state)
        for state, middle in states.items()
        for temperature, vibration, current in draw.normal(middle, (4.0, 0.4, 0.5), (80, 3))
    ]
    random.Random(0).shuffle(rows)
    _write_split(folder, ("temperature", "vibration", "current", "label"), rows)


def write_images(folder: Path) -> None:
    """Write the folders ``data`` and ``held_out``, with a folder of drawings for each shape."""
    draw = np.random.default_rng(0)
    for part, count in (("data", 40), ("held_out", 12)):
        for shape in ("bar", "cross", "ring"):
            inner = folder / part / shape
            inner.mkdir(parents=True)
            for number in range(count):
                pixels = _drawing(shape, draw)
                (inner / f"{number:03}.pgm").write_bytes(f"P5 {_SIDE} {_SIDE} 255\n".encode() + pixels.tobytes())


def _drawing(shape: str, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Return a shape of any size and position, with noise, as ``[height, width]``."""
    y, x = np.mgrid[:_SIDE, :_SIDE] - draw.uniform(6, 9, 2)[:, None, None]
    radius = draw.uniform(3, 5.5)
    near = np.maximum(abs(x), abs(y)) < radius
    shapes = {
        "bar": (abs(x) < 1.2) & near,
        "cross": (np.minimum(abs(x), abs(y)) < 1.0) & near,
        "ring": abs(np.hypot(x, y) - radius) < 1.0,
    }
    light = 40 + 160 * shapes[shape] + draw.normal(0, 25, (_SIDE, _SIDE))
    return np.asarray(light.clip(0, 255), np.uint8)


def _write_split(folder: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write every fifth row to ``held_out.csv``, and the others to ``data.csv``."""
    _write(folder / "held_out.csv", [header, *rows[::5]])
    _write(folder / "data.csv", [header, *(row for index, row in enumerate(rows) if index % 5)])


def _write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
