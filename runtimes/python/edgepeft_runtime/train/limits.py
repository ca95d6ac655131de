"""When a device should not train now: its time is over, it is hot, or others need it. For Linux."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgepeft_runtime.errors import TrainingError

COOLER = 5.0
"""Degrees Celsius below the limit at which training goes on, so that it does not start and stop with every step."""

OTHERS = 0.2
"""The share of all processor time that other processes may take of a device that counts as idle."""

EVERY = 5.0
"""Seconds between two looks while training waits."""

WINDOW = 2.0
"""Seconds over which processor time is counted: shorter ones tell nothing."""


@dataclass(frozen=True)
class Pause:
    """Why training must not go on now.

    Attributes:
        reason: one word, which becomes ``Report.stopped`` where training ends: ``minutes``, ``temperature``, ``busy``.
        detail: the same for people, with figures.
        seconds: to wait before asking again; ``None``: training ends here, and goes on another day.
    """

    reason: str
    detail: str
    seconds: float | None = None


class Limits:
    """Asked between optimizer steps by ``Trainer.fit(pause=...)``: gives a :class:`Pause`, or ``None`` to go on.

    Time ends the training. Heat and other work make it wait: within minutes they are over, most of the time.

    Args:
        minutes: from now on, waiting included.
        temperature: degrees Celsius of the hottest sensor. Hotter than that, training waits until it is ``COOLER``.
        idle: wait while other processes take more than ``OTHERS`` of the processor time.
        every: seconds between two looks while training waits.
        thermal: where the kernel has its sensors, ``thermal_zone*/temp`` in thousandths of a degree.
        stat: where the kernel counts processor time (proc(5)).

    Raises:
        TrainingError: a limit is no number above 0, or the device has nothing to measure it by.
    """

    def __init__(
        self,
        *,
        minutes: float | None = None,
        temperature: float | None = None,
        idle: bool = False,
        every: float = EVERY,
        thermal: str | Path = "/sys/class/thermal",
        stat: str | Path = "/proc/stat",
    ) -> None:
        for name, limit in (("minutes", minutes), ("temperature", temperature), ("every", every)):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise TrainingError(
                    "bad-setting", f"{name} must be a number above 0.", context=f"found {limit}", hint=None
                )
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._minutes = minutes
        self._heat = None if temperature is None else _Heat(Path(thermal), temperature)
        self._others = _Others(Path(stat)) if idle else None
        self._every = every

    def __call__(self) -> Pause | None:
        """Whether training must end or wait now."""
        left = math.inf if self._end is None else self._end - time.monotonic()
        if left <= 0:
            return Pause("minutes", f"{self._minutes:g} minutes are over")
        wait = min(self._every, left)
        if self._heat is not None and (detail := self._heat.too_high()) is not None:
            return Pause("temperature", detail, wait)
        if self._others is not None and (detail := self._others.too_many()) is not None:
            return Pause("busy", detail, wait if self._others.known else min(wait, WINDOW))
        return None


class _Heat:
    """The hottest of a device's sensors, against a limit."""

    def __init__(self, folder: Path, limit: float) -> None:
        self._folder, self._limit = folder, limit
        self._waits = False
        self._hottest()

    def too_high(self) -> str | None:
        """Why to wait, if it is."""
        hottest = self._hottest()
        below = self._limit - COOLER
        self._waits = hottest > (below if self._waits else self._limit)
        return f"{hottest:.1f} °C, goes on at {below:g} °C" if self._waits else None

    def _hottest(self) -> float:
        found = [degrees for zone in self._folder.glob("thermal_zone*") if (degrees := _degrees(zone)) is not None]
        if not found:
            raise TrainingError(
                "no-thermometer",
                "The temperature of this device cannot be read.",
                context=f"no {self._folder}/thermal_zone*/temp gives a number",
                hint="train without a limit of the temperature.",
            )
        return max(found)


def _degrees(zone: Path) -> float | None:
    """A sensor's temperature in °C; ``None`` for one that is switched off, which cannot be read."""
    try:
        return int((zone / "temp").read_text("ascii")) / 1000
    except (OSError, ValueError):
        return None


class _Times(NamedTuple):
    """Processor time so far, in seconds over all processors."""

    total: float
    busy: float
    own: float


class _Others:
    """How much processor time all other processes take.

    Not by the load average, which counts this run's own threads and what was running a minute ago.
    """

    def __init__(self, stat: Path) -> None:
        self._stat = stat
        self._least = WINDOW * (os.cpu_count() or 1)
        self._since = self._times()
        self._share: float | None = None

    @property
    def known(self) -> bool:
        """Whether somebody has looked for long enough."""
        return self._share is not None

    def too_many(self) -> str | None:
        """Why to wait, if they take too much or nothing is known yet."""
        now = self._times()
        total, busy, own = (after - before for after, before in zip(now, self._since, strict=True))
        if total >= self._least:
            self._share, self._since = max(0.0, busy - own) / total, now
        if self._share is None:
            return f"looking for {WINDOW:g} s what other processes do"
        if self._share > OTHERS:
            return f"other processes take {self._share:.0%} of the processors, goes on at {OTHERS:.0%}"
        return None

    def _times(self) -> _Times:
        try:
            first = self._stat.read_text("ascii").partition("\n")[0].removeprefix("cpu ")
            user, nice, system, idle, waiting, interrupts, soft = map(int, first.split()[:7])
        except (OSError, ValueError) as failure:
            raise TrainingError(
                "no-processor-times",
                "It cannot be told whether this device is idle.",
                context=f"{self._stat}: {failure}",
                hint="train without this limit; it takes Linux.",
            ) from failure
        busy = user + nice + system + interrupts + soft
        ticks = os.sysconf("SC_CLK_TCK")
        return _Times((busy + idle + waiting) / ticks, busy / ticks, time.process_time())
