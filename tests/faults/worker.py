"""One process of many: runs its part of all points, with the library preloaded; prints them as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from tests.faults import on_devices, on_hosts
from tests.faults.runner import Runner

_COMMANDS = ("aggregate", "deliver", "export_ort_training", "join", "keys", "publish", "pull", "rollback", "train")
_LATE = (
    *(f"edgepeft.cli.commands.{name}" for name in _COMMANDS),
    "edgepeft.cli.limits",
    "edgepeft.cli.screen.progress",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "edgepeft.aggregation",
    "edgepeft_export.ort_training.artifacts",
    "edgepeft_runtime.train.memory.probe",
    "numpy.random",
)
"""Lazy imports of commands, done before the forks, so that no fork has to."""


def main() -> None:
    """Run part ``--part`` of ``--parts`` of every ``--every``-th point."""
    parser = argparse.ArgumentParser()
    for name in ("every", "part", "parts"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--stages", type=Path, required=True)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    for name in _LATE:
        import_module(name)
    work = asked.stages.parent / f"part-{asked.part}"
    work.mkdir()
    for case in (*on_devices.cases(asked.stages / "bundle"), *on_hosts.cases(asked.stages / "bundle")):
        if asked.only not in case.name:
            continue
        began, count = time.monotonic(), 0
        for point in Runner(case, work, asked.stages).points(asked.every * asked.parts, asked.every * asked.part):
            print(json.dumps(asdict(point)), flush=True)
            count += 1
        seconds = time.monotonic() - began
        print(f"{case.name}: {count} points in {seconds:.0f} s (part {asked.part})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
