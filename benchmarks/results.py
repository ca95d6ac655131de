"""Compute rows, ratios and targets from the measurements of the sides."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.sides import SIDES
from benchmarks.targets import CHECKPOINT, MEMORY, PEERS, SIZE, TARGETS, TIME
from benchmarks.turns import Running

Row: TypeAlias = dict[str, Any]
ORACLE = "torch-eager"
SAME, NEAR = 2e-3, 0.1
"""Relative to the oracle's first loss, if both compute in fp32 and if one rounds."""
COMPARED = 10
"""Steps that are compared. AdamW amplifies rounding errors in those after them."""


def row_of(case: str, side: Running, about: Mapping[str, Any], folder: Path, oracle: Sequence[float]) -> Row:
    """One row: medians of time with the 10th and 90th percentile, the largest resident set, sizes in bytes.

    ``losses`` tells whether they went as ``benchmarks.sides.Side`` wants it.
    """
    if side.failure is not None:
        return {"case": case, "side": side.name, "error": side.failure}
    deciles = statistics.quantiles(side.times, n=10, method="inclusive")
    row: Row = {
        "case": case,
        "side": side.name,
        TIME: round(statistics.median(side.times), 1),
        "ms_p10_p90": [round(deciles[0], 1), round(deciles[-1], 1)],
        MEMORY: round(side.peak_rss_mb, 1),
        "checkpoint_bytes": about["checkpoint_bytes"],
    }
    if SIDES[side.name].bundle:
        row[SIZE] = bundle_bytes(folder / SIDES[side.name].argument)
    if side.losses:
        row |= {"first_loss": side.losses[0], "last_loss": side.losses[-1]}
        row["losses"] = losses_go(SIDES[side.name].losses, side.losses, oracle)
    return row


def bundle_bytes(folder: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(file.stat().st_size for file in folder.iterdir())


def losses_go(how: str, losses: Sequence[float], oracle: Sequence[float]) -> str:
    """Return ``ok``, or the difference of the losses from the oracle's. Without an oracle they only have to fall."""
    if not losses[-1] < losses[0]:
        return f"does not fall: {losses[0]:.4f} to {losses[-1]:.4f}"
    if how == "fall" or not oracle:
        return "ok"
    differences = [abs(a - b) for a, b in zip(losses[:COMPARED], oracle, strict=False)]
    bound = (NEAR if how == "near" else SAME) * abs(oracle[0])
    for step, difference in enumerate(differences, 1):
        if difference > bound:
            return f"step {step} differs by {difference:.2g}: {losses[step - 1]:.5f}, {ORACLE} {oracle[step - 1]:.5f}"
    return "ok"


def ratios_of(rows: Sequence[Row]) -> list[Row]:
    """Each device side to each peer of its case, in time and memory, and whether they took turns."""
    found = {(row["case"], row["side"]): row for row in rows if "error" not in row}
    return [
        {"case": case, "side": side, "peer": peer}
        | {figure: round(row[figure] / found[case, peer][figure], 3) for figure in (TIME, MEMORY)}
        | {"in_turn": row["run"] == found[case, peer]["run"]}
        for (case, side), row in found.items()
        if SIDES[side].bundle
        for peer in PEERS
        if (case, peer) in found
    ]


def targets_of(rows: Sequence[Row]) -> list[Row]:
    """Every target with its measured ratio; ``met`` is ``None`` where a side has no figure, or they took no turns."""
    found = {(row["case"], row["side"]): row for row in rows if "error" not in row}
    results = []
    for target in TARGETS:
        own = found.get((target.case, target.side))
        peer = own if target.peer == CHECKPOINT else found.get((target.case, target.peer))
        figure = "checkpoint_bytes" if target.peer == CHECKPOINT else target.figure
        in_turn = own and peer and own["run"] == peer["run"]
        ratio = round(own[target.figure] / peer[figure], 3) if own and peer and in_turn else None
        met = None if ratio is None else ratio <= target.bound
        results.append(
            {"case": target.case, "side": target.side, "peer": target.peer, "figure": target.figure}
            | {"ratio": ratio, "bound": target.bound, "met": met}
        )
    return results
