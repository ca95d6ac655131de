"""Run every side of a case in its own process, in turn, and write ``results.json``.

Speed drifts on a shared machine. All sides are therefore alive at once and take turns, and the results are ratios of
medians. All sides use the same number of threads. Memory is the peak resident set of the side's process (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cases import CASES, MEASURED
from benchmarks.results import ORACLE, Row, ratios_of, row_of, targets_of
from benchmarks.sides import SIDES
from benchmarks.tables import table
from benchmarks.turns import ROOT, Running, start, take_turns


def main() -> None:
    options = _parser().parse_args()
    kept: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    rows = [row for row in kept.get("rows", []) if row["case"] in CASES and row["case"] not in options.cases]
    summaries: dict[str, Any] = {row["case"]: kept["cases"][row["case"]] for row in rows}
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            new, summaries[case] = measure(case, Path(folder), options)
        rows += new
        rows.sort(key=lambda row: CASES.index(row["case"]))
        results = {
            "machine": machine.describe(),
            "versions": machine.versions(options.training_python),
            "settings": {"rounds": options.rounds, "steps": options.steps, "threads": options.threads},
            "cases": summaries,
            "rows": rows,
            "ratios": ratios_of(rows),
            "targets": targets_of(rows),
        }
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(results)}")
    if wrong := [row for row in rows if row.get("losses", "ok") != "ok"]:
        raise SystemExit("\n".join(f"{row['case']}, {row['side']}: {row['losses']}" for row in wrong))


def measure(case: str, folder: Path, options: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of one case, and its description: its summary, and the load of other processes."""
    print(f"{case}: preparing", flush=True)
    command = [sys.executable, "-m", "benchmarks.preparing", case, str(folder), *options.sides]
    subprocess.run(command, check=True, cwd=ROOT)
    about = json.loads((folder / "case.json").read_text("utf-8"))
    failures: dict[str, str] = about["failures"]
    for name in options.sides:
        if SIDES[name].environment == "ort-training" and not SIDES[name].bundle and name not in failures:
            failures |= _artifacts(name, folder, options.training_python)
    sides = [_start(name, folder, options) for name in options.sides if name not in failures]
    print(f"{case}: {len(sides)} sides take {options.rounds} turns of {options.steps} steps", flush=True)
    disturbance = take_turns(sides, options.rounds, options.steps)
    for side in sides:
        if side.failure is None:
            side.finish()
    oracle = next((side.losses for side in sides if side.name == ORACLE and side.failure is None), [])
    rows = {side.name: row_of(case, side, about, folder, oracle) for side in sides}
    failed = {name: {"case": case, "side": name, "error": line} for name, line in failures.items()}
    about = {"summary": about["summary"], "busy_cores": asdict(disturbance)}
    return [(rows | failed)[name] for name in options.sides], about


def _artifacts(name: str, folder: Path, python: Path) -> dict[str, str]:
    """Let the other environment make its artifacts; return errors by side."""
    if not python.exists():
        return {name: "its environment is not there: run `make bench`"}
    command = [str(python), "-m", "benchmarks.sides.ort_artifacts", str(folder / SIDES[name].argument)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = [line for line in done.stderr.strip().splitlines() if line] or [f"exit code {done.returncode}"]
    return {name: lines[-1]} if done.returncode else {}


def _start(name: str, folder: Path, options: argparse.Namespace) -> Running:
    side = SIDES[name]
    python = options.training_python if side.environment == "ort-training" else sys.executable
    return start(name, [python, "-m", side.module, folder, side.argument, str(options.threads)], folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(MEASURED), choices=CASES, help="rows of others are kept")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="steps of each side in a round")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of every side")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--training-python", type=Path, default=ROOT / ".venv-ort-training/bin/python")
    return parser


if __name__ == "__main__":
    main()
