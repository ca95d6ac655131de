"""Runs every side of a case in a process of its own, in turn, and writes ``results.json``.

Speed drifts on a shared machine: so all sides are alive at once and take turns, round after round, and what counts
are ratios of medians.
Memory is the largest resident set of the side's own process (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.case import CASE, prepare

SIDES = {
    "torch-eager": ("benchmarks.sides.torch_peft", "eager"),
    "torch-compile": ("benchmarks.sides.torch_peft", "compile"),
    "ort-inference-fp32": ("benchmarks.sides.ort_inference", "inference.onnx"),
    "edgepeft-fp32": ("benchmarks.sides.device_runtime", "bundle"),
}
"""Side to the module that runs it and its argument."""

RATIOS = [
    ("edgepeft-fp32", "torch-eager"),
    ("edgepeft-fp32", "torch-compile"),
    ("edgepeft-fp32", "ort-inference-fp32"),
]


@dataclass
class Side:
    """A side's process, which runs a number of steps whenever it is told to."""

    name: str
    process: subprocess.Popen[str]
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_rss_mb: float = 0.0

    def turn(self, steps: int) -> None:
        """Run ``steps`` steps; a warm-up is a turn whose times nobody keeps."""
        answer = self._ask(f"run {steps}")
        self.times += answer["ms"]
        self.losses += answer.get("losses", [])

    def finish(self) -> None:
        """End the process and keep its largest resident set."""
        self.peak_rss_mb = self._ask("end")["peak_rss_mb"]
        self.process.wait()

    def _ask(self, command: str) -> dict[str, list[float]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(command, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5, help="steps of each side in a round")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{CASE}: preparing", flush=True)
        prepare(Path(folder))
        sides = [_start(name, Path(folder)) for name in options.sides]
        for side in sides:
            side.turn(3)
            side.times.clear()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            for side in sides:
                side.turn(options.steps)
        for side in sides:
            side.finish()
    _check_losses(sides)
    _write(sides, options.out)


def _start(name: str, folder: Path) -> Side:
    module, argument = SIDES[name]
    command = [sys.executable, "-m", module, str(folder), argument]
    return Side(name, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))


def _check_losses(sides: list[Side]) -> None:
    """Sides that train must have done the same work."""
    training = [side for side in sides if side.losses]
    for side in training[1:]:
        for one, other in zip(training[0].losses, side.losses, strict=True):
            assert abs(one - other) <= 1e-3 * abs(one), (
                f"{side.name} trains otherwise than {training[0].name}: {other}, {one}"
            )


def _write(sides: list[Side], out: Path) -> None:
    rows = {
        side.name: {
            "case": CASE,
            "side": side.name,
            "ms_per_step": round(statistics.median(side.times), 1),
            "peak_rss_mb": round(side.peak_rss_mb, 1),
        }
        for side in sides
    }
    ratios = {
        f"{one} / {other}": {
            "ms_per_step": round(rows[one]["ms_per_step"] / rows[other]["ms_per_step"], 3),
            "peak_rss_mb": round(rows[one]["peak_rss_mb"] / rows[other]["peak_rss_mb"], 3),
        }
        for one, other in RATIOS
        if one in rows and other in rows
    }
    print(f"\n{'side':22}{'ms/step':>9}{'peak MB':>9}")
    for name, row in rows.items():
        print(f"{name:22}{row['ms_per_step']:>9}{row['peak_rss_mb']:>9}")
    for name, ratio in ratios.items():
        print(f"{name:44}{ratio['ms_per_step']:>7} x time{ratio['peak_rss_mb']:>7} x memory")
    out.write_text(json.dumps({"rows": list(rows.values()), "ratios": ratios}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
