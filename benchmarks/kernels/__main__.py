"""What ONNX Runtime's kernels cost on the shapes of train graphs: ``python -m benchmarks.kernels``.

Writes ``docs/KERNELS.md``, with a pair of columns for the version of this environment and one for the oldest that
bundles support, where ``EDGEPEFT_OLDEST_PYTHON`` or ``--oldest`` names a Python that has it. All kernels take turns,
and the fastest run of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks import machine
from benchmarks.kernels import timing
from benchmarks.kernels.rows import IMAGE, ROWS, Row, convolutions, elementwise, integers

PAGE = Path(__file__).parents[2] / "docs" / "KERNELS.md"


@dataclass(frozen=True)
class Times:
    """Seconds of all rows with one version of onnxruntime: CPU time of one thread, wall time of several.

    ``None``, where it has no kernel.
    """

    version: str
    seconds: list[tuple[float | None, float | None]]


def measured(rows: Sequence[Row], python: str, rounds: int, threads: int) -> Times:
    """Time the rows in another process."""
    with tempfile.TemporaryDirectory() as folder:
        for index, row in enumerate(rows):
            onnx.save(row.model(), Path(folder) / f"{index}.onnx")
            np.savez(Path(folder) / f"{index}.npz", **row.fed)
        command = [python, timing.__file__, folder, str(rounds), str(threads)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Times(found["version"], [(cpu, wall) for cpu, wall in found["seconds"]])


def table(title: str, rows: Sequence[Row], start: int, times: Sequence[Times], threads: int) -> list[str]:
    """A table in Markdown; nanoseconds for each element, or billions of operations a second."""
    rates = title.endswith("/s")
    columns = [f"{one.version}: {kind}" for one in times for kind in ("one thread, CPU", f"{threads} threads, wall")]
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for index, row in enumerate(rows, start):
        seconds = [best for one in times for best in one.seconds[index]]
        lines.append(f"| {row.name} | {' | '.join(_cell(row.unit, best, rate=rates) for best in seconds)} |")
    return [*lines, ""]


def _cell(unit: float, seconds: float | None, *, rate: bool) -> str:
    if seconds is None:
        return "no kernel"
    return f"{unit / seconds / 1e9:.0f}" if rate else f"{seconds / unit * 1e9:.2f}"


def page(tables: dict[str, list[Row]], times: Sequence[Times], threads: int) -> str:
    """The page with its tables."""
    about = machine.describe()
    lines = [
        "# What kernels cost",
        "",
        "Gradient rules and passes choose operators by these figures, which `python -m benchmarks.kernels` measures:",
        "the fastest run of each kernel on random data, in turn. A column names the version of ONNX Runtime.",
        f"{about['processor']} ({', '.join(about['instructions'])}).",
        "",
    ]
    start = 0
    for title, rows in tables.items():
        lines += table(title, rows, start, times, threads)
        start += len(rows)
    lines += [
        "A depthwise convolution is fast where its weight is a constant: ONNX Runtime then uses a blocked layout.",
        "`Where`, `Sign`, `Round` and `Sum` use one thread, however many there are, and `PRelu` does in 1.32.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="of the columns in wall time")
    parser.add_argument("--oldest", default=os.environ.get("EDGEPEFT_OLDEST_PYTHON"), help="another Python")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    tables = {
        f"elementwise, {' x '.join(map(str, IMAGE))}, ns per element": elementwise(),
        f"convolution of {ROWS} images, GFLOP/s": convolutions(),
        f"a convolution with int8 weights, of {ROWS} fp32 images, GFLOP/s": integers(),
    }
    rows = [row for part in tables.values() for row in part]
    pythons = [sys.executable, *([options.oldest] if options.oldest else [])]
    times = [measured(rows, python, options.rounds, options.threads) for python in pythons]
    options.page.write_text(page(tables, times, options.threads), encoding="utf-8")
    print(options.page.read_text("utf-8"))


if __name__ == "__main__":
    main()
