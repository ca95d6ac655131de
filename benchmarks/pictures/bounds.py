"""What the benches were to show: the bounds, the sides that could not run, and counts of instructions."""

from __future__ import annotations

from textwrap import shorten
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


def counted(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each step whose instructions were counted, in millions."""
    inference = {row["case"]: row["now"] for row in rows if row["side"] == "ort-inference-fp32"}
    lines = ["| case | side | millions | x inference | before | now / before |", "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        now, before, base = row["now"], row.get("before"), inference.get(row["case"])
        if not isinstance(now, int):
            continue
        beside = f"{now / base:.2f}" if isinstance(base, int) else ""
        old = f"{before / 1e6:.0f} | {now / before:.2f}" if isinstance(before, int) else " | "
        lines.append(f"| {row['case']} | {row['side']} | {now / 1e6:.0f} | {beside} | {old} |")
    return lines


def _cell(text: str) -> str:
    """The beginning of a message: some list all that a library knows."""
    return shorten(text, 160, placeholder=" …").replace("|", "\\|").replace("<", "&lt;")
