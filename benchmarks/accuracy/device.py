"""Start the device's run in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.accuracy.plan import Plan
from benchmarks.turns import ROOT


def run(bundle: Path, data: Path, plan: Plan, seed: int, threads: int) -> float:
    """Train a bundle on ``train.npz`` in the folder ``data`` as planned; return the accuracy on ``test.npz``."""
    settings = {"plan": asdict(plan), "seed": seed, "threads": threads}
    command = [sys.executable, "-m", "benchmarks.accuracy.device_side", str(bundle), str(data), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"exit code {done.returncode}")
    accuracy: float = json.loads(done.stdout)
    return accuracy
