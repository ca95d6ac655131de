"""The accuracy table: mean and deviation over seeds, and the difference from PyTorch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from benchmarks.targets import POINTS

Cell: TypeAlias = dict[str, Any]
REFERENCE = "torch"


def summary(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row per task and column, in percent; ``points`` is the mean difference to PyTorch over the seeds both have.

    ``met`` is ``None`` where there is no target, or no pair of seeds yet.
    """
    found = {
        (cell["task"], cell["column"], cell["seed"]): 100 * cell["accuracy"] for cell in cells if "error" not in cell
    }
    errors = {(cell["task"], cell["column"]): cell["error"] for cell in cells if "error" in cell}
    rows = []
    for task, column in dict.fromkeys((cell["task"], cell["column"]) for cell in cells):
        values = {seed: value for (t, c, seed), value in found.items() if (t, c) == (task, column)}
        row: dict[str, Any] = {"task": task, "column": column, "seeds": len(values)}
        if (task, column) in errors:
            row["error"] = errors[task, column]
        rows.append(row | (_figures(task, column, values, found) if values else {}))
    return rows


def _figures(
    task: str, column: str, values: Mapping[int, float], found: Mapping[tuple[str, str, int], float]
) -> dict[str, Any]:
    differences = [
        value - found[task, REFERENCE, seed] for seed, value in values.items() if (task, REFERENCE, seed) in found
    ]
    points = statistics.mean(differences) if differences else None
    bound = POINTS.get(column)
    return {
        "mean": round(statistics.mean(values.values()), 2),
        "deviation": round(statistics.stdev(values.values()), 2) if len(values) > 1 else None,
        "points": None if points is None else round(points, 2),
        "points_deviation": round(statistics.stdev(differences), 2) if len(differences) > 1 else None,
        "bound": None if bound is None else -bound,
        "met": None if bound is None or points is None else points >= -bound,
    }


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [f"{'task':14}{'side':14}{'seeds':>6}{'held out %':>16}{'to torch':>18}{'bound':>7}"]
    for row in rows:
        line = f"{row['task']:14}{row['column']:14}{row['seeds']:>6}"
        if "mean" in row:
            line += f"{_spread(row['mean'], row['deviation']):>16}{_spread(row['points'], row['points_deviation']):>18}"
            met = {True: "  met", False: "  NOT met", None: ""}[row["met"]]
            line += f"{'' if row['bound'] is None else row['bound']:>7}{met}"
        lines.append(f"{line}  {row['error']}" if "error" in row else line)
    return "\n".join(lines)


def _spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
