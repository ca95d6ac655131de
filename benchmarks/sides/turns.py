"""The loop of every side: run steps on request and report their time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve(step: Callable[[], float | None]) -> None:
    """Answer the driver's commands: ``run N`` runs ``step`` N times; ``end`` ends the process.

    A step returns its loss, if it has one. A step that fails ends the process with one line that says why.
    """
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "end":
            print(json.dumps({"peak_rss_mb": peak_rss_mb()}), flush=True)
            return
        print(json.dumps(timed(step, int(arguments[0]))), flush=True)


def timed(step: Callable[[], float | None], count: int) -> dict[str, list[float]]:
    """Run a step ``count`` times. Returns the milliseconds of each under ``ms``, and their ``losses``."""
    times, losses = [], []
    for _ in range(count):
        start = time.perf_counter()
        loss = step()
        times.append((time.perf_counter() - start) * 1e3)
        losses += [] if loss is None else [loss]
    return {"ms": times, "losses": losses}


def peak_rss_mb() -> float:
    """The largest resident set of this process so far, in MB (2**20 bytes)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1024
