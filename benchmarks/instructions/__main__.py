"""Count the instructions of a training step on emulated aarch64: ``python -m benchmarks.instructions``.

Seconds in an emulator say nothing, instructions do: one thread on a processor with dot products of 8-bit integers
(``--cpu cortex-a72`` has none), after a step that creates the sessions. Counts repeat to about a thousandth. It takes
minutes per step. ``--baseline FOLDER`` names another checkout, whose compiler and runtime make the same step before.
It writes ``benchmarks/instructions.json``; rows that were not counted again are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES as KNOWN
from benchmarks.instructions.emulator import install
from benchmarks.sides import SIDES
from benchmarks.turns import ROOT
from tests.aarch64.board import CPUS
from tests.aarch64.debian import Unavailable

CASES = ("minilm", "mobilenet-lora", "mobilenet-bias")
COUNTED = ("ort-inference-fp32", "edgepeft-fp32", "edgepeft-int8")
SCRIPT = Path(__file__).with_name("on_board.py")


def main() -> None:
    options = _parser().parse_args()
    rows = json.loads(options.out.read_text("utf-8")) if options.out.exists() else []
    for case in options.cases:
        for side in options.sides:
            row = {"case": case, "side": side, "cpu": options.cpu, "now": count(case, side, ROOT, options.cpu)}
            if options.baseline is not None and SIDES[side].bundle:
                row["before"] = count(case, side, options.baseline.resolve(), options.cpu)
            rows = [old for old in rows if any(old[key] != row[key] for key in ("case", "side", "cpu"))] + [row]
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def count(case: str, side: str, checkout: Path, cpu: str) -> int | str:
    """Instructions of a step as a checkout makes it, or the last line of its error."""
    paths = (checkout, checkout / "export", checkout / "runtimes" / "python")
    with tempfile.TemporaryDirectory() as name:
        folder, marks = Path(name), Path(name) / "marks"
        command = [sys.executable, "-m", "benchmarks.preparing", case, name, side]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not (folder / SIDES[side].argument).exists():
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        try:
            board = install(cpu, marks)
        except Unavailable as reason:
            raise SystemExit(f"No emulated board: {reason}.") from None
        board.python(SCRIPT, folder, SIDES[side].argument, cwd=folder, path=(checkout, paths[2]))
        first, last = (int(line.split()[1]) for line in marks.read_text("ascii").splitlines())
    return last - first


def table(rows: list[dict[str, Any]]) -> str:
    """Millions of instructions, now and before, and as a multiple of inference."""
    inference = {(row["case"], row["cpu"]): row["now"] for row in rows if not SIDES[row["side"]].bundle}
    lines = [f"{'millions of instructions':34}{'now':>10}{'x inference':>12}{'before':>10}{'now / before':>14}"]
    for row in rows:
        now, before, base = row["now"], row.get("before"), inference.get((row["case"], row["cpu"]))
        cells = [
            f"{now / 1e6:.1f}" if isinstance(now, int) else str(now),
            f"{now / base:.2f}" if isinstance(now, int) and isinstance(base, int) else "",
            f"{before / 1e6:.1f}" if isinstance(before, int) else str(before or ""),
            f"{now / before:.2f}" if isinstance(now, int) and isinstance(before, int) else "",
        ]
        about = f"{row['case']}, {row['side']}"
        lines.append(f"{about:34}{cells[0]:>10}{cells[1]:>12}{cells[2]:>10}{cells[3]:>14}".rstrip())
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=__doc__, formatter_class=form
    )
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=KNOWN, metavar="CASE")
    parser.add_argument("--sides", nargs="*", default=list(COUNTED), choices=COUNTED, metavar="SIDE")
    parser.add_argument("--cpu", default="cortex-a76", choices=list(CPUS))
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="another checkout of this repository")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "instructions.json")
    return parser


if __name__ == "__main__":
    main()
