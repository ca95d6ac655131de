"""Measure the cost of switching tasks: MiniLM with several LoRA adapters and a BitFit bundle in one process.

Predictions of one text take turns between staying with a task and changing it each time; the results are ratios of
medians. Loading the adapter's file for every call is timed as well.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import edgepeft
from benchmarks import machine
from benchmarks.cases import minilm
from edgepeft.methods import BitFit, Method
from edgepeft_runtime import Tasks, Trainer

ROUNDS, CALLS = 20, 10
OUT = Path(__file__).with_name("switching.json")


def main() -> None:
    case = minilm.LORA
    batch = {name: array[:1] for name, array in case.batch().items()}
    with tempfile.TemporaryDirectory() as temporary:
        lora, bitfit = (_bundle(method, Path(temporary) / method.name) for method in (case.method, BitFit()))
        updates = [_update(lora, Path(temporary) / f"{seed}.safetensors", seed) for seed in range(2)]
        before = _resident()
        with Tasks.open(lora, {"a": updates[0], "b": updates[1]}) as tasks, Trainer.open(lora) as trainer:
            tasks.predict("a", batch)
            one = _resident()
            tasks.add("c", bitfit)
            tasks.predict("c", batch)
            both = _resident()
            kinds: dict[str, Callable[[int], object]] = {
                "staying": lambda _: tasks.predict("a", batch),
                "switching adapters": lambda call: tasks.predict("ab"[call % 2], batch),
                "switching methods": lambda call: tasks.predict("ac"[call % 2], batch),
                "reading the file each time": lambda call: trainer.predict(batch, adapter=updates[call % 2]),
            }
            times = _timed(kinds)
    medians = {kind: statistics.median(found) for kind, found in times.items()}
    results = {
        "machine": machine.describe(),
        "ms": {kind: round(1000 * value, 2) for kind, value in medians.items()},
        "ratio to staying": {kind: round(value / medians["staying"], 3) for kind, value in medians.items()},
        "resident MB": {"one model, two adapters": round(one - before, 1), "a second method": round(both - one, 1)},
    }
    OUT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: results[name] for name in ("ms", "ratio to staying", "resident MB")}, indent=2))


def _bundle(method: Method, out: Path) -> Path:
    return edgepeft.prepare(minilm.LORA.source(), method=method, out=out).bundle


def _update(bundle: Path, path: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    with Trainer.open(bundle) as trainer:
        changed = {
            name: array + 0.01 * draw.normal(size=array.shape).astype(array.dtype)
            for name, array in trainer.parameters().items()
        }
    with Trainer.open(bundle, adapter=changed) as trainer:
        return trainer.save_update(path)


def _timed(kinds: dict[str, Callable[[int], object]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, call in kinds.items():
            for number in range(CALLS):
                start = time.perf_counter()
                call(number)
                times[kind].append(time.perf_counter() - start)
    return times


def _resident() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
