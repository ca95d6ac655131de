"""What `make bench` was to show: the bounds, and the sides that could not run."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import MEMORY, SIZE, TIME

_FIGURES = {TIME: "time", MEMORY: "memory", SIZE: "size"}
_MET = {True: "met", False: "**missed**", None: "not measured in turn"}


def bounds(results: dict[str, Any]) -> list[str]:
    """A line for each bound: the ratio of two sides of a case, and whether it is met."""
    lines = ["| case | figure | side | beside | at most | measured | |", "|---|---|---|---|---:|---:|---|"]
    for found in results["targets"]:
        ratio = "" if found["ratio"] is None else f"{found['ratio']:.2f}"
        lines.append(
            f"| {found['case']} | {_FIGURES[found['figure']]} | {found['side']} | {found['peer']}"
            f" | {found['bound']:.2f} | {ratio} | {_MET[found['met']]} |"
        )
    return lines


def failures(results: dict[str, Any]) -> list[str]:
    """A line for each side that could not run, with its reason."""
    failed = [row for row in results["rows"] if "error" in row]
    if not failed:
        return ["Every side ran in every case."]
    rows = [f"| {row['case']} | {row['side']} | {_cell(row['error'])} |" for row in failed]
    return ["| case | side | why it did not run |", "|---|---|---|", *rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
