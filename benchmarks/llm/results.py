"""Rows of the results: one per shape, method, length, side and limit of memory; and what is compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, TypeAlias

from benchmarks.llm.memory import MB
from benchmarks.llm.shapes import SHAPES, operations
from benchmarks.llm.sides import SIDES, TORCH
from benchmarks.turns import Running

Row: TypeAlias = dict[str, Any]
KEY = ("shape", "method", "length", "side", "limit_mb")

MACHINES = (("avx512_vnni", "VNNI"), ("avx_vnni", "VNNI"), ("i8mm", "i8mm"), ("avx2", "AVX2"), ("asimddp", "dot"))
"""Instructions to the names of machines that have them, best first: integer products are several times faster."""

SAME, NEAR = 1e-3, 0.05
"""Relative to the first loss of PyTorch: of fp32, and of rounded weights."""


def machine_kind(description: dict[str, Any]) -> str:
    """Return the integer instructions of a machine, in a word."""
    return next((name for flag, name in MACHINES if flag in description["instructions"]), "scalar")


def row_of(
    key: dict[str, Any], side: Running, made: dict[str, Any], about: dict[str, Any], oracle: Sequence[float]
) -> Row:
    """Return the row of a side.

    Args:
        key: Values of ``KEY``, and the run and the machine.
        side: The side, finished.
        made: What ``benchmarks.llm.making`` reported.
        about: Counts of the model's parameters.
        oracle: Losses of PyTorch, if it ran.
    """
    row: Row = {**key}
    if made:
        row |= {"disk_mb": round(made["bytes"] / MB, 1), "make_s": made["make_s"], "make_mb": made["make_mb"]}
    if side.failure is not None:
        return row | {"error": side.failure}
    kind = SIDES[key["side"]]
    seconds = statistics.median(side.times) / 1e3
    tokens = key["length"]
    work = operations(about["matmul_parameters"], tokens, trains=kind.trains)
    return (
        row
        | side.figures
        | {
            "s_per_step": round(seconds, 4),
            "s_fastest": round(min(side.times) / 1e3, 4),
            "tokens_per_s": round(tokens / seconds, 1),
            "gop_per_s": round(work / seconds / 1e9, 1),
        }
        | ({"losses": compared(side.losses, oracle, key["side"])} if side.losses else {})
    )


def compared(losses: Sequence[float], oracle: Sequence[float], side: str) -> str:
    """Return ``ok``, or how the first loss differs from PyTorch's; later ones depend on LoRA's random start."""
    if not losses[-1] < losses[0]:
        return f"does not fall: {losses[0]:.4f} to {losses[-1]:.4f}"
    if not oracle or side == TORCH:
        return "ok"
    difference = abs(losses[0] - oracle[0]) / abs(oracle[0])
    bound = SAME if SIDES[side].kind == "fp32" else NEAR
    return "ok" if difference <= bound else f"starts at {losses[0]:.4f}, PyTorch at {oracle[0]:.4f}"


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return old rows with new ones in their stead, by shape, method, length and side."""
    rows = {key_of(row): row for row in (*old, *new)}
    return sorted(rows.values(), key=_rank)


def key_of(row: Row) -> tuple[Any, ...]:
    """Return what identifies a row."""
    return tuple(row.get(name) for name in KEY)


def _rank(row: Row) -> tuple[Any, ...]:
    shapes, sides = list(SHAPES), list(SIDES)
    limit = row.get("limit_mb")
    return (
        shapes.index(row["shape"]),
        row["method"] != "qv",
        row["length"],
        limit is not None,
        -(limit or 0),
        sides.index(row["side"]),
    )


def ratio(row: Row, rows: Sequence[Row], peer: str) -> float | None:
    """Return a row's time per step to that of a peer that took turns with it, or ``None`` if there is none."""
    other = next(
        (
            found
            for found in rows
            if found["side"] == peer
            and found["run"] == row["run"]
            and key_of(found | {"side": row["side"]}) == key_of(row)
            and "error" not in found
        ),
        None,
    )
    if other is None or other is row or "error" in row:
        return None
    return round(row["s_per_step"] / other["s_per_step"], 3)
