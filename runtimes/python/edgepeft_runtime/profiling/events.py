"""Reads the files of onnxruntime's profiler: what ran in which run of a session, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgepeft_runtime.files.schema import Json

_RUN, _KERNEL = "model_run", "_kernel_time"
_FUSED = "fused "
"""The prefix of the name of a node that onnxruntime fuses with others."""
_MICRO = 1e-6

Event: TypeAlias = Json


@dataclass(frozen=True)
class Kernel:
    """One node in one run.

    Attributes:
        node: its name in the graph that onnxruntime runs, which fuses nodes and inserts some.
        operator: its operator.
        seconds: without the nodes of its own graphs (loops), which are kernels of their own.
        written: bytes of its results.
        in_use: bytes of onnxruntime's arena in use when it ended; ``None`` where the release does not report it.
    """

    node: str
    operator: str
    seconds: float
    written: int
    in_use: int | None


@dataclass(frozen=True)
class Run:
    """One run of a session: seconds with everything that onnxruntime does between the kernels, and the kernels."""

    seconds: float
    kernels: tuple[Kernel, ...]


def read_runs(path: Path) -> list[Run]:
    """Return the runs in a profiler's file, in order."""
    events: list[Event] = json.loads(path.read_text("utf-8"))
    runs = sorted((event for event in events if event["name"] == _RUN), key=_start)
    kernels = sorted((event for event in events if event["name"].endswith(_KERNEL)), key=lambda e: (_start(e), -_of(e)))
    found, index = [], 0
    for run in runs:
        inside = []
        while index < len(kernels) and _start(kernels[index]) < _start(run) + _of(run):
            inside.append(kernels[index])
            index += 1
        found.append(Run(_of(run) * _MICRO, tuple(_kernels(inside))))
    return found


def _kernels(events: Sequence[Event]) -> list[Kernel]:
    """Return kernels with their own time. The nodes of a loop run within the kernel of the loop."""
    inner = [0] * len(events)
    around: list[int] = []
    for index, event in enumerate(events):
        while around and _start(event) >= _start(events[around[-1]]) + _of(events[around[-1]]):
            around.pop()
        if around:
            inner[around[-1]] += _of(event)
        around.append(index)
    return [_kernel(event, max(_of(event) - taken, 0)) for event, taken in zip(events, inner, strict=True)]


def _kernel(event: Event, micros: int) -> Kernel:
    facts: Mapping[str, str] = event["args"]
    in_use = facts.get("mem_bytes_in_use")
    return Kernel(
        event["name"].removesuffix(_KERNEL).removeprefix(_FUSED),
        facts["op_name"],
        micros * _MICRO,
        int(facts.get("output_size", 0)),
        None if in_use is None else int(in_use),
    )


def _start(event: Event) -> int:
    return int(event["ts"])


def _of(event: Event) -> int:
    return int(event["dur"])
