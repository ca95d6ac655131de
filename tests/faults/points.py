"""Builds the library and the stages, and runs the points in processes side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.faults import injector, on_devices, on_hosts
from tests.faults.commands import build
from tests.faults.runner import Point


@dataclass(frozen=True)
class _Worker:
    """A process that runs points, and the file it writes them to."""

    process: subprocess.Popen[bytes]
    said: Path


_MEMORY = Path("/dev/shm")


def points(every: int = 1, processes: int = 2, only: str = "") -> list[Point]:
    """Run every so many points of the commands whose names contain ``only``."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as folder:
        root = Path(folder).resolve()
        library, stages = injector.build(root), root / "stages"
        build(stages, lambda bundle: [*on_devices.cases(bundle), *on_hosts.cases(bundle)])
        workers = [_worker(library, stages, every, part, processes, only) for part in range(processes)]
        return [point for worker in workers for point in _results(worker)]


def _worker(library: Path, stages: Path, every: int, part: int, parts: int, only: str) -> _Worker:
    arguments = {"every": every, "part": part, "parts": parts, "stages": stages, "only": only}
    options = [f"--{name}={value}" for name, value in arguments.items()]
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    said = stages.parent / f"points-{part}"  # not a pipe, which would be full before it is read
    with said.open("w") as file:
        command = [sys.executable, "-m", "tests.faults.worker", *options]
        return _Worker(subprocess.Popen(command, env=environment, stdout=file), said)


def _results(worker: _Worker) -> list[Point]:
    if worker.process.wait() != 0:
        raise RuntimeError(f"a process of the fault injection ended with {worker.process.returncode}")
    return [Point(**json.loads(line)) for line in worker.said.read_text().splitlines()]
