"""Runs the device's part of an example as a device does: another environment, the ``edgepeft`` command, no torch."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a command of the device took: wall-clock seconds, and the largest resident set in MB."""

    seconds: float
    peak_mb: float


def parse_device_python(description: str) -> Path:
    """The example's one option: the interpreter of the device's environment."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--device-python", type=Path, default=Path(sys.executable), help="interpreter of the device's environment"
    )
    path: Path = parser.parse_args().device_python
    return path


def run(python: Path, *arguments: str | Path) -> Cost:
    """Run ``edgepeft ARGUMENTS`` on the device and wait for it."""
    print(f"  device$ edgepeft {' '.join(str(argument) for argument in arguments)}", flush=True)
    start = time.perf_counter()
    process = subprocess.Popen([python, "-m", "edgepeft", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)  # the kernel's own account of this one process
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"the device's part failed with exit code {process.returncode}")
    return Cost(time.perf_counter() - start, usage.ru_maxrss / 1024)


def packages(python: Path) -> list[str]:
    """Names of the packages in the device's environment."""
    code = "import importlib.metadata as m; print(*sorted({d.name.lower() for d in m.distributions()}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()
