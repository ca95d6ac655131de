"""The driver's end of a side: a process that works on request and must be idle otherwise."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAUSE = 0.3
"""Seconds before each turn: longer than any thread pool spins after its work."""
LONG = 3000.0
"""ms after which a turn of a slow side ends: it runs fewer steps, at least one."""
LIMIT = 24000.0
"""ms that a slow side may take in all its turns: it runs in fewer rounds, at least two."""


class SideError(RuntimeError):
    """A side that ended: the last line of its output says why."""


@dataclass
class Running:
    """A side's process and its results so far.

    Attributes:
        times: ms of each step.
        losses: of all steps, those of the warm-up too.
        figures: what the side reports of itself, by name.
        failure: why it ended before its time, if it did.
    """

    name: str
    process: subprocess.Popen[str]
    log: Path
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    failure: str | None = None

    def turn(self, steps: int) -> None:
        """Run ``steps`` steps; a side that ends here has no more turns."""
        answer = self.ask(f"run {steps}")
        self.times += answer.get("ms", [])
        self.losses += answer.get("losses", [])

    def finish(self) -> None:
        """End the process and keep what it reports of itself, such as its largest resident set."""
        self.figures |= self.ask("end")
        self.peak_rss_mb = self.figures.get("peak_rss_mb", 0.0)
        self.process.wait()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and return the answer; empty, with ``failure`` set, if the side has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(command, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code, lines = self.process.wait(), self.log.read_text("utf-8", errors="replace").strip().splitlines()
        self.failure = lines[-1] if lines else f"exit code {code}"
        return {}


def start(
    name: str, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> Running:
    """Start a side, with further variables of the environment; its standard error is stored in ``folder``."""
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
    return Running(name, process, log)


@dataclass(frozen=True)
class Disturbance:
    """Load of other processes during turns, in cores. The times are valid only near 0.

    Attributes:
        waiting: all waiting sides together, in the worst turn.
        outside: everything that is not the side whose turn it is, in the median turn.
    """

    waiting: float
    outside: float


def take_turns(sides: Sequence[Running], rounds: int, steps: int, warm_up: int = 3) -> Disturbance:
    """Warm all sides up, then run them one after another, round after round. A slow side skips steps and rounds."""
    paces: dict[str, tuple[int, int]] = {}
    for side in sides:
        side.turn(1)
        if warm_up > 1 and min(side.times, default=LONG) < LONG:
            side.turn(warm_up - 1)
        paces[side.name] = pace(min(side.times, default=LONG), rounds, steps)
        side.times.clear()
    turns = [
        _turn(side, paces[side.name][1], [other for other in sides if other is not side])
        for number in range(rounds)
        for side in sides
        if side.failure is None and number % paces[side.name][0] == 0
    ]
    waiting, outside = zip(*turns, strict=True) if turns else ((0.0,), (0.0,))
    return Disturbance(round(max(waiting), 3), round(statistics.median(outside), 3))


def pace(step: float, rounds: int, steps: int) -> tuple[int, int]:
    """Return after how many rounds a side runs again, and how many steps, if one takes ``step`` ms."""
    steps = max(1, min(steps, int(LONG / step)))
    turns = max(2, min(rounds, int(LIMIT / (steps * step))))
    return max(1, rounds // turns), steps


def _turn(side: Running, steps: int, others: Sequence[Running]) -> tuple[float, float]:
    """Cores used by the waiting sides, and by everything but ``side``."""
    waiting = [other.process.pid for other in others if other.failure is None]
    time.sleep(PAUSE)
    before, start = _seconds(side, waiting), time.perf_counter()
    side.turn(steps)
    if side.failure is not None:
        return 0.0, 0.0
    after, spent = _seconds(side, waiting), time.perf_counter() - start
    idle, own, machine = (b - a for a, b in zip(before, after, strict=True))
    return idle / spent, max(0.0, machine - own) / spent


def _seconds(side: Running, waiting: Sequence[int]) -> tuple[float, float, float]:
    """CPU seconds so far: of the waiting sides, of ``side``, of the whole machine."""
    fields = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]
    user, nice, system, _idle, _wait, interrupts, soft = map(int, fields[:7])
    machine = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    return sum(map(_cpu_seconds, waiting)), _cpu_seconds(side.process.pid), machine


def _cpu_seconds(process: int) -> float:
    """User and system time of a process and its threads, from /proc (resolution 10 ms)."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
