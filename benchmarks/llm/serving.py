"""The loop of every side: open, take steps on request, and report time and memory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.llm.memory import MB, Sampler, read_bytes
from benchmarks.sides.turns import timed

GROUP = "EDGEPEFT_BENCH_GROUP"
"""Environment variable: the file of a control group to which the process adds itself."""

Step = Callable[[], float | None]


def join_group() -> None:
    """Join the control group that the driver made, if it made one."""
    if group := os.environ.get(GROUP):
        Path(group).write_text(str(os.getpid()), encoding="ascii")


def serve(open_: Callable[[], Step]) -> None:
    """Answer the driver's commands: ``open``, ``run N`` steps, ``end``.

    Args:
        open_: Loads the side; returns its step, which returns the loss if there is one.
    """
    sampler, steps, step, before = Sampler(), 0, None, 0
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "end":
            read = (read_bytes() - before) / MB / steps if steps else 0.0
            print(json.dumps({**sampler.end(), "read_mb_per_step": round(read, 1)}), flush=True)
            return
        if command == "open":
            start = time.perf_counter()
            step = open_()
            print(json.dumps({"open_s": round(time.perf_counter() - start, 3)}), flush=True)
            continue
        assert step is not None
        results = timed(step, int(arguments[0]))
        if before == 0:  # from the second step on
            before = read_bytes()
        else:
            steps += len(results["ms"])
        print(json.dumps(results), flush=True)
