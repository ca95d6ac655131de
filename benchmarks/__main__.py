"""Run every side of a case in its own process, in turn, and write ``results.json``.

Speed drifts on a shared machine. All sides are therefore alive at once and take turns, and the results are ratios of
medians. All sides use the same number of threads. Memory is the peak resident set of the side's process (VmHWM).
With ``--cases`` or ``--sides``, the rows of all others stay in the file; ratios say whether both sides took turns.
A side that cannot run has a row with its reason. All cases together are planned to take half an hour on two cores: a
side whose step takes seconds runs fewer of them, in fewer rounds. ``--rounds 3`` takes two thirds of that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cases import CASES, MEASURED
from benchmarks.results import ORACLE, Row, ratios_of, row_of, targets_of
from benchmarks.sides import SIDES, Side
from benchmarks.tables import table
from benchmarks.turns import ROOT, Running, start, take_turns

ENVIRONMENTS = Path(os.environ.get("EDGEPEFT_ENVIRONMENTS", ROOT))
"""The folder of the other environments, which ``make bench`` makes."""


def main() -> None:
    options = _parser().parse_args()
    kept: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    rows: list[Row] = [row for row in kept.get("rows", []) if row["case"] in CASES and row["side"] in SIDES]
    summaries: dict[str, Any] = {case: kept["cases"][case] for case in dict.fromkeys(row["case"] for row in rows)}
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            new, summaries[case], unmeasured = measure(case, Path(folder), options)
        rows = merged([row for row in rows if row["case"] != case or row["side"] not in unmeasured], new)
        results = {
            "machine": machine.describe(),
            "versions": machine.versions(ENVIRONMENTS),
            "settings": {"rounds": options.rounds, "steps": options.steps, "threads": options.threads},
            "cases": summaries,
            "rows": rows,
            "ratios": ratios_of(rows),
            "targets": targets_of(rows),
        }
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(results)}")
    ours = [row for row in rows if row["case"] in options.cases and SIDES[row["side"]].bundle]
    if wrong := [row for row in ours if row.get("losses", "ok") != "ok"]:
        raise SystemExit("\n".join(f"{row['case']}, {row['side']}: {row['losses']}" for row in wrong))


def measure(case: str, folder: Path, options: argparse.Namespace) -> tuple[list[Row], dict[str, Any], list[str]]:
    """Return the rows of one case, its description (summary, load of other processes), and sides that it has not."""
    print(f"{case}: preparing", flush=True)
    names = [name for name in SIDES if name in options.sides]  # in this order: exports change the classes of models
    command = [sys.executable, "-m", "benchmarks.preparing", case, str(folder), *names]
    subprocess.run(command, check=True, cwd=ROOT)
    about = json.loads((folder / "case.json").read_text("utf-8"))
    names = [name for name in names if name not in about["unmeasured"]]
    failures: dict[str, str] = about["failures"]
    to_make = [name for name in names if name not in failures]
    with ThreadPoolExecutor(2) as pool:  # most of it runs on one core
        made = zip(to_make, pool.map(lambda name: _artifacts(SIDES[name], folder), to_make), strict=True)
    failures |= {name: line for name, line in made if line is not None}
    sides = [_start(name, folder, options) for name in names if name not in failures]
    print(f"{case}: {len(sides)} sides take {options.rounds} turns of {options.steps} steps", flush=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    disturbance = take_turns(sides, options.rounds, options.steps)
    for side in sides:
        if side.failure is None:
            side.finish()
    oracle = next((side.losses for side in sides if side.name == ORACLE and side.failure is None), [])
    rows = {side.name: row_of(case, side, about, folder, oracle) for side in sides}
    failed = {name: {"case": case, "side": name, "error": line} for name, line in failures.items()}
    summary = {"summary": about["summary"], "busy_cores": asdict(disturbance)}
    return [{**(rows | failed)[name], "run": started} for name in names], summary, about["unmeasured"]


def merged(kept: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Replace the rows of the sides that were measured again, in the order of cases and sides."""
    rows = {(row["case"], row["side"]): row for row in (*kept, *new)}
    cases, sides = list(CASES), list(SIDES)
    return [rows[key] for key in sorted(rows, key=lambda key: (cases.index(key[0]), sides.index(key[1])))]


def _artifacts(side: Side, folder: Path) -> str | None:
    """Let another environment make what its side reads; return its error, if there was one."""
    if side.environment == "host":
        return None
    if not _python(side).exists():
        return "its environment is not there: run `make bench`"
    if side.artifacts is None:
        return None
    command = [str(_python(side)), "-m", side.artifacts, str(folder / side.argument)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = [line for line in done.stderr.strip().splitlines() if line] or [f"exit code {done.returncode}"]
    return lines[-1] if done.returncode else None


def _python(side: Side) -> Path:
    return Path(sys.executable) if side.environment == "host" else ENVIRONMENTS / f".venv-{side.environment}/bin/python"


def _start(name: str, folder: Path, options: argparse.Namespace) -> Running:
    side = SIDES[name]
    return start(name, [_python(side), "-m", side.module, folder, side.argument, str(options.threads)], folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(MEASURED), choices=CASES, help="rows of others are kept")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES), help="rows of others are kept")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side; slow ones have fewer")
    parser.add_argument("--steps", type=int, default=5, help="steps of each side in a round")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of every side")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    return parser


if __name__ == "__main__":
    main()
