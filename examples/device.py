"""Run the device's part of an example in an environment without torch, through the ``edgepeft`` command."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def parse_device_python(description: str) -> Path:
    """The example's one option: the interpreter of the device's environment."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--device-python", type=Path, default=Path(sys.executable), help="interpreter of the device's environment"
    )
    path: Path = parser.parse_args().device_python
    return path


def run(python: Path, *arguments: str | Path) -> None:
    """Run ``edgepeft ARGUMENTS`` on the device and wait for it."""
    print(f"  device$ edgepeft {' '.join(str(argument) for argument in arguments)}", flush=True)
    subprocess.run([python, "-m", "edgepeft", *map(str, arguments)], check=True)


def packages(python: Path) -> list[str]:
    """Names of the packages in the device's environment."""
    code = "import importlib.metadata as m; print(*sorted({d.name.lower() for d in m.distributions()}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()
