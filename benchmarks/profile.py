"""Profile a training step by operator: ``python -m benchmarks.profile CASE SIDE``.

The figures come from onnxruntime's profiler, on the bundle's train and optimizer graphs. Profiling adds 15 to 20
microseconds per node, so graphs of many small nodes look slower than they are; ``ms`` is the time of the profiled
run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import onnxruntime

from benchmarks import machine
from benchmarks.cases import CASES
from benchmarks.sides import SIDES
from benchmarks.turns import ROOT
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine import sessions
from edgepeft_runtime.engine.engine import Step, TrainState
from edgepeft_runtime.engine.portable import PortableEngine
from edgepeft_runtime.engine.sessions import session_options
from edgepeft_runtime.files.tensorfile import Array, read_tensors

Event: TypeAlias = dict[str, Any]
OUT = Path(__file__).with_name("profile.json")


def main() -> None:
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.preparing", options.case, folder, options.side]
        subprocess.run(command, check=True, cwd=ROOT)
        about = json.loads((Path(folder) / "case.json").read_text("utf-8"))
        if options.side in about["failures"]:
            raise SystemExit(f"{options.side}: {about['failures'][options.side]}")
        graphs = profile(Path(folder), SIDES[options.side].argument, options.steps, options.threads)
    print(text(options.case, options.side, graphs))
    kept = json.loads(options.out.read_text("utf-8")) if options.out.exists() else []
    rows = [row for row in kept if (row["case"], row["side"]) != (options.case, options.side)]
    rows.append({"case": options.case, "side": options.side, "graphs": graphs})
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def profile(folder: Path, name: str, steps: int, threads: int) -> dict[str, Any]:
    """Time by operator and the longest nodes of the bundle's train and optimizer graphs, per step."""
    bundle = Bundle.open(folder / name)
    engine = _ProfiledEngine(bundle, threads=threads)
    batch = dict(np.load(folder / "batch.npz"))
    state = engine.load(read_tensors(bundle.file("adapter.safetensors")).tensors)
    for step in range(1, steps + 2):  # the first allocates memory and prepacks weights, so it is not counted
        state = engine.train(state, [batch], lr=bundle.manifest.optimizer.lr, step=step).state
    return {graph: summary(events) for graph, events in engine.events().items()}


def _profiling_options(threads: int | None, weights: int = 0) -> onnxruntime.SessionOptions:
    """Return the device's session options, with onnxruntime's profiler on."""
    options = session_options(threads, weights)
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(tempfile.gettempdir()) / "edgepeft-profile")
    return options


class _ProfiledEngine(PortableEngine):
    """The engine of the device, whose sessions are profiled."""

    def train(self, state: TrainState, batches: Sequence[Mapping[str, Array]], *, lr: float, step: int) -> Step:
        with mock.patch.object(sessions, "session_options", _profiling_options):
            return super().train(state, batches, lr=lr, step=step)

    def events(self) -> dict[str, list[Event]]:
        """Stop profiling; return the events of each graph."""
        return {graph: _read_once(Path(session.end_profiling())) for graph, session in self._sessions.opened.items()}


def _read_once(path: Path) -> list[Event]:
    events: list[Event] = json.loads(path.read_text("utf-8"))
    path.unlink()
    return events


def summary(events: Sequence[Event], top: int = 15) -> dict[str, Any]:
    """Of all runs but the first: ms per run (median), fraction of kernel time by operator, the longest nodes."""
    runs = sorted((event for event in events if event["name"] == "model_run"), key=lambda event: int(event["ts"]))
    counted, after = runs[1:], runs[0]["ts"] + runs[0]["dur"]
    kernels = [event for event in events if event["name"].endswith("_kernel_time") and event["ts"] >= after]
    by_operator: dict[str, float] = defaultdict(float)
    by_node: dict[tuple[str, str], float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for event in kernels:
        operator = event["args"]["op_name"]
        by_operator[operator] += event["dur"]
        count[operator] += 1
        by_node[event["name"].removesuffix("_kernel_time"), operator] += event["dur"]
    total, steps = sum(by_operator.values()), len(counted)
    return {
        "ms_per_run": round(statistics.median(run["dur"] for run in counted) / 1e3, 2),
        "kernels_ms": round(total / steps / 1e3, 2),
        "nodes": len(kernels) // steps,
        "operators": [
            {
                "operator": operator,
                "fraction": round(spent / total, 4),
                "ms": round(spent / steps / 1e3, 3),
                "nodes": count[operator] // steps,
            }
            for operator, spent in _largest(by_operator)
        ],
        "longest": [
            {"node": node, "operator": operator, "ms": round(spent / steps / 1e3, 3)}
            for (node, operator), spent in _largest(by_node)[:top]
        ],
    }


def _largest(spent: dict[Any, float]) -> list[tuple[Any, float]]:
    return sorted(spent.items(), key=lambda item: -item[1])


def text(case: str, side: str, graphs: dict[str, Any], rows: int = 20) -> str:
    """The profile as tables."""
    lines = []
    for graph, figures in graphs.items():
        lines.append(f"\n{case}, {side}, {graph}: {figures['ms_per_run']} ms in {figures['nodes']} nodes")
        lines += [
            f"  {row['fraction']:>6.1%}{row['ms']:>9.3f} ms{row['nodes']:>6} x {row['operator']}"
            for row in figures["operators"][:rows]
        ]
        lines += [f"  {row['ms']:>9.3f} ms  {row['operator']:28}{row['node']}" for row in figures["longest"]]
    return "\n".join(lines)


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
