"""Bounds on figures of the comparison, and whether they are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.llm.results import Row
from benchmarks.llm.sides import BASELINE, TORCH

INT8, INT4 = "edgepeft-int8", "edgepeft-int4"
MIDDLE, LARGE = "qwen2.5-0.5b", "qwen2.5-1.5b"


@dataclass(frozen=True)
class Target:
    """``figure`` of a side is at most ``bound``, or at most ``bound`` times another figure.

    Attributes:
        figure: Name in the row.
        bound: In the figure's unit, or a factor.
        shape, length, side: The row, with LoRA on q and v.
        peer: Side whose figure it is compared with, in the same run; ``None`` means none.
        other: Figure of the peer (of the row itself without one) that it is compared with; by default ``figure``.
    """

    figure: str
    bound: float
    shape: str = MIDDLE
    length: int = 256
    side: str = INT8
    peer: str | None = None
    other: str | None = None

    def __str__(self) -> str:
        against = " ".join(part for part in (self.peer and f"of {self.peer}", self.other) if part)
        return f"{self.shape}, 1 x {self.length}, {self.side}: {self.figure}{f' to that {against}' if against else ''}"


TARGETS = (
    Target("anon_mb", 250),
    Target("s_per_step", 1.2, peer=BASELINE),
    Target("s_per_step", 0.38, peer=TORCH),
    Target("open_s", 0.5),
    Target("first_s", 2, other="s_per_step"),
    Target("make_s", 40),
    Target("anon_mb", 350, length=1024),
    Target("anon_mb", 500, length=2048),
    Target("anon_mb", 500, shape=LARGE),
    Target("make_s", 90, shape=LARGE),
    Target("disk_mb", 0.6, side=INT4, peer=INT8),
    Target("s_per_step", 1.5, side=INT4, peer=INT8),
)

PERPLEXITY = {"edgepeft int8": 1.015, "edgepeft int4": 1.05}
"""The largest perplexity of a rounded model, before training and after it, to that of fp32."""


def targets_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return each target with its measured value; ``met`` is ``None`` where a figure is missing."""
    return [_checked(target, rows) for target in TARGETS]


def perplexity_targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the same for the perplexity of each rounded model; the worst of several machines counts.

    Args:
        rows: Of the table of ``benchmarks.llm.perplexity``.
    """
    found = []
    for side, bound in PERPLEXITY.items():
        for moment in ("before", "after"):
            values = [row[f"{moment}_ratio"] for row in rows if row["side"] == side and f"{moment}_ratio" in row]
            value = max(values, default=None)
            met = None if value is None else value <= bound
            target = f"perplexity {moment} training, {side} to edgepeft fp32"
            found.append({"target": target, "value": value, "bound": bound, "met": met})
    return found


def _checked(target: Target, rows: Sequence[Row]) -> dict[str, Any]:
    case = {"shape": target.shape, "method": "qv", "length": target.length, "limit_mb": None}
    own = _row(rows, case | {"side": target.side})
    value = own.get(target.figure)
    if value is not None and (target.peer or target.other):
        timed = {"run": own["run"]} if target.figure.startswith("s_") else {}
        peer = _row(rows, case | {"side": target.peer or target.side} | timed)
        against = peer.get(target.other or target.figure)
        value = None if against is None else round(value / against, 3)
    met = None if value is None else value <= target.bound
    return {"target": str(target), "value": value, "bound": target.bound, "met": met}


def _row(rows: Sequence[Row], wanted: dict[str, Any]) -> Row:
    """Return the row with these values; empty if there is none."""
    return next((row for row in rows if all(row.get(name) == value for name, value in wanted.items())), {})
