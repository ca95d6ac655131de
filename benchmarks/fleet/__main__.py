"""Measure a fleet's host: ``python -m benchmarks.fleet`` (``make bench-fleet``).

It measures first how many devices the host serves (``benchmarks.fleet.load``), then how many updates per second it
verifies and aggregates, and in how much memory.

The updates are simulated: MiniLM with LoRA r=8 on query and value and a head of 8 classes, the bundle's adapter plus
noise, written as devices write them. Each figure comes from its own process, which reads every file, checks digest,
base, round, shapes and values, and averages. The files are in the system's cache. Signatures, the ledger and the
network are not included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgepeft
from benchmarks import machine
from benchmarks.fleet import load as fleet_load
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.train.memory.peak import peak_memory
from edgepeft_runtime.train.update import Update, write_update

COUNTS = (100, 1000, 4000)
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "svd": {"rule": "svd"},
    "clip": {"clip": 1.0},
    "trimmed-mean": {"robust": "trimmed-mean=0.1"},
}
DAY, MILLION = 86_400, 1_000_000
OUT = Path(__file__).parents[1] / "fleet.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=4, metavar=("RULE", "BUNDLE", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder on a disk")
    asked = parser.parse_args()
    if asked.measure is not None:
        rule, bundle_path, folder, count = asked.measure
        print(json.dumps(measured(rule, Path(bundle_path), Path(folder), int(count))))
        return
    with tempfile.TemporaryDirectory(dir=fleet_load.memory()) as temporary:
        bundle, updates = _bundle(Path(temporary) / "bundle"), Path(temporary) / "updates"
        fleet_load.measure(bundle, asked.disk)
        size = simulate(bundle, updates, max(COUNTS))
        rows = [_row("fedavg", bundle, updates, count) for count in COUNTS]
        rows += [_row(rule, bundle, updates, 1000) for rule in RULES if rule != "fedavg"]
    results = {"machine": machine.describe(), "bytes per update": size, "rows": rows}
    OUT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("\n".join(arithmetic(rows[len(COUNTS) - 1], size)))


def _bundle(out: Path) -> Bundle:
    from benchmarks.cases import minilm

    return Bundle.open(
        edgepeft.prepare(minilm.LORA.source(), method=minilm.LORA.method, compute="int8", out=out).bundle
    )


def simulate(bundle: Bundle, folder: Path, count: int) -> int:
    """Write the updates of ``count`` devices; returns the bytes of one."""
    folder.mkdir()
    start, draw = bundle.adapter(), np.random.default_rng(0)
    for number in range(count):
        tensors = {name: array + 0.01 * draw.standard_normal(array.shape, np.float32) for name, array in start.items()}
        update = Update(tensors, bundle.base_sha256, bundle.adapter_sha256, bundle.manifest.provenance, 100, 10)
        path = write_update(folder / f"{number:06}.safetensors", update)
    return path.stat().st_size


def measured(rule: str, bundle: Path, folder: Path, count: int) -> dict[str, Any]:
    """Seconds and peak memory of aggregating the first ``count`` updates, in this process."""
    opened, paths = Bundle.open(bundle), sorted(folder.iterdir())[:count]
    edgepeft.aggregate(opened, paths[:10], **RULES[rule])
    before, start, cpu = _peak(), time.perf_counter(), time.process_time()
    found = edgepeft.aggregate(opened, paths, **RULES[rule])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert len(found.report.updates) == count
    return {
        "rule": rule,
        "updates": count,
        "seconds": round(seconds, 2),
        "per second": round(count / seconds, 1),
        "CPU ms per update": round(1000 * cpu / count, 2),
        "peak MB": round(_peak(), 1),
        "grown by MB": round(_peak() - before, 1),
    }


def _peak() -> float:
    return peak_memory() / 1e6


def _row(rule: str, bundle: Bundle, folder: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fleet", "--measure", rule, bundle.path, folder, count]
    # Threads that wait for one another on a busy machine would count as work.
    environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, env=environment)
    row: dict[str, Any] = json.loads(done.stdout)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def arithmetic(row: dict[str, Any], size: int) -> list[str]:
    """Extrapolate the measurements to a million devices a day."""
    core = MILLION * row["CPU ms per update"] / 1000 / DAY
    return [
        f"a million devices that each send {size / 1e3:.0f} kB once a day:",
        f"  {MILLION / DAY:.1f} updates and {MILLION * size / DAY / 1e6:.1f} MB per second, "
        f"{MILLION * size / 1e9:.0f} GB a day",
        f"  {row['CPU ms per update']:.1f} ms of a core each: {100 * core:.0f} % of one core's day",
        f"  the sum is taken as updates come: {row['peak MB']:.0f} MB at {row['updates']:,} updates",
        "  rounds of one campaign can be split over processes: a mean of means, weighted by their counts, is the mean",
    ]


if __name__ == "__main__":
    main()
