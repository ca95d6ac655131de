"""Format results as text tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.results import Row
from benchmarks.targets import MEMORY, SIZE, TIME

_MET = {True: "met", False: "NOT met", None: "not measured"}


def table(results: dict[str, Any]) -> str:
    """Rows by case, ratios, targets."""
    cases = dict.fromkeys(row["case"] for row in results["rows"])
    parts = [
        f"{_about(results['cases'][case])}\n{_rows(case, [row for row in results['rows'] if row['case'] == case])}"
        for case in cases
    ]
    return "\n\n".join([*parts, _ratios(results["ratios"]), _targets(results["targets"])])


def _about(case: dict[str, Any]) -> str:
    busy = case["busy_cores"]
    return (
        f"{case['summary']}\ncores busy with something else: {busy['outside']}, with waiting sides: {busy['waiting']}"
    )


def _rows(case: str, rows: Sequence[Row]) -> str:
    lines = [f"{case:24}{'ms/step':>9}{'p10..p90':>16}{'peak MB':>9}{'bundle MB':>11}  losses"]
    for row in rows:
        if "error" in row:
            lines.append(f"{row['side']:24}  {row['error'][:100]}")
            continue
        spread = "{}..{}".format(*row["ms_p10_p90"])
        size = f"{row[SIZE] / 1e6:.1f}" if SIZE in row else ""
        lines.append(
            f"{row['side']:24}{row[TIME]:>9}{spread:>16}{row[MEMORY]:>9}{size:>11}  {row.get('losses', '')}".rstrip()
        )
    return "\n".join(lines)


def _ratios(ratios: Sequence[Row]) -> str:
    lines = [f"{'ratios':16}{'side':24}{'peer':22}{'time':>7}{'memory':>8}"]
    lines += [
        f"{r['case']:16}{r['side']:24}{r['peer']:22}{r[TIME]:>7}{r[MEMORY]:>8}{'' if r['in_turn'] else '  not in turn'}"
        for r in ratios
    ]
    return "\n".join(lines)


def _targets(targets: Sequence[Row]) -> str:
    lines = [f"{'targets':16}{'figure':14}{'side':24}{'peer':22}{'ratio':>7}{'bound':>7}"]
    for t in targets:
        ratio = "-" if t["ratio"] is None else t["ratio"]
        lines.append(
            f"{t['case']:16}{t['figure']:14}{t['side']:24}{t['peer']:22}{ratio:>7}{t['bound']:>7}  {_MET[t['met']]}"
        )
    return "\n".join(lines)
