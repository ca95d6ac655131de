"""Profile a training step of a benchmark case: ``python -m benchmarks.profile CASE SIDE``.

It prepares the side's bundle and profiles it on the case's batch, as ``edgepeft profile`` does on a user's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import edgepeft_runtime
from benchmarks import machine
from benchmarks.cases import CASES
from benchmarks.sides import SIDES
from benchmarks.turns import ROOT
from edgepeft_runtime import Bundle, Profile

OUT = Path(__file__).with_name("profile.json")


def main() -> None:
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.preparing", options.case, folder, options.side]
        subprocess.run(command, check=True, cwd=ROOT)
        about = json.loads((Path(folder) / "case.json").read_text("utf-8"))
        if options.side in about["failures"]:
            raise SystemExit(f"{options.side}: {about['failures'][options.side]}")
        found = profile(Path(folder), SIDES[options.side].argument, options.steps, options.threads)
    print(found.table())
    kept = json.loads(options.out.read_text("utf-8")) if options.out.exists() else []
    rows = [row for row in kept if (row["case"], row["side"]) != (options.case, options.side)]
    summary = {name: value for name, value in found.to_dict().items() if name != "timeline"}
    rows.append({"case": options.case, "side": options.side, **summary})
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def profile(folder: Path, name: str, steps: int, threads: int) -> Profile:
    """Profile the steps of a bundle on the batch beside it."""
    batch = dict(np.load(folder / "batch.npz"))
    return edgepeft_runtime.profile(Bundle.open(folder / name), [batch], steps=steps, threads=threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("side", choices=[name for name, side in SIDES.items() if side.bundle])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=OUT)
    return parser


if __name__ == "__main__":
    main()
