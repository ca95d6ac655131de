"""Limits on when a device trains: time, temperature, and use by other processes. Temperature and use need Linux."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgepeft_runtime.checks import require
from edgepeft_runtime.errors import NoProcessorTimes, NoThermometer

COOLER = 5.0
"""Degrees Celsius below the limit at which training resumes, so that it does not start and stop with every step."""

OTHERS = 0.2
"""Fraction of all processor time that other processes may use on a device that counts as idle."""

EVERY = 5.0
"""Seconds between two checks while training waits."""

WINDOW = 2.0
"""Sampling window in seconds; shorter windows are too noisy."""


@dataclass(frozen=True)
class Pause:
    """Why training must pause.

    Attributes:
        reason: one word, which becomes ``FitReport.stopped`` if training ends: ``minutes``, ``temperature``, ``busy``.
        detail: the reason as a message, with figures.
        seconds: how long to wait before checking again; ``None`` ends training, to be resumed another day.
    """

    reason: str
    detail: str
    seconds: float | None = None


class Limits:
    """Called between optimizer steps by ``Trainer.fit(pause=...)``; returns a ``Pause``, or ``None`` to train.

    When the time is over, training ends. When the device is hot or busy, training waits, because that is usually over
    within minutes.

    Args:
        minutes: time from now on, including pauses.
        temperature: limit in degrees Celsius. If the hottest sensor exceeds it, training waits until the temperature
            is ``COOLER`` degrees below the limit.
        idle: wait while other processes use more than ``OTHERS`` of the processor time.
        every: seconds between two checks while training waits.
        thermal: directory of the kernel's sensors, ``thermal_zone*/temp`` in thousandths of a degree.
        stat: file in which the kernel counts processor time (proc(5)).

    Raises:
        SettingError: a limit is not a number above 0.
        TrainingError: the device cannot measure it.
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
            require(name, limit, limit is None or (math.isfinite(limit) and limit > 0), "a number above 0")
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._minutes = minutes
        self._heat = None if temperature is None else _Heat(Path(thermal), temperature)
        self._others = _Others(Path(stat)) if idle else None
        self._every = every

    def __call__(self) -> Pause | None:
        """Return why training must end or wait now, if it must."""
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
    """Compares the hottest of a device's sensors with a limit."""

    def __init__(self, folder: Path, limit: float) -> None:
        self._folder, self._limit = folder, limit
        self._waits = False
        self._hottest()

    def too_high(self) -> str | None:
        """Return why to wait, if it is too hot."""
        hottest = self._hottest()
        below = self._limit - COOLER
        self._waits = hottest > (below if self._waits else self._limit)
        return f"{hottest:.1f} °C, resumes at {below:g} °C" if self._waits else None

    def _hottest(self) -> float:
        readings = [degrees for zone in self._folder.glob("thermal_zone*") if (degrees := _degrees(zone)) is not None]
        if not readings:
            raise NoThermometer(
                "The temperature of this device cannot be read.",
                context=f"no {self._folder}/thermal_zone*/temp contains a number",
                hint="train without a temperature limit.",
            )
        return max(readings)


def _degrees(zone: Path) -> float | None:
    """Return a sensor's temperature in °C; ``None`` for one that is switched off and cannot be read."""
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
    """Measures the processor time of all other processes.

    The load average is not used: it counts this run's own threads, and processes of a minute ago.
    """

    def __init__(self, stat: Path) -> None:
        self._stat = stat
        self._least = WINDOW * (os.cpu_count() or 1)
        self._since = self._times()
        self._fraction: float | None = None

    @property
    def known(self) -> bool:
        """Whether a whole sampling window was measured."""
        return self._fraction is not None

    def too_many(self) -> str | None:
        """Return why to wait, if they use too much or nothing was measured yet."""
        now = self._times()
        total, busy, own = (after - before for after, before in zip(now, self._since, strict=True))
        if total >= self._least:
            self._fraction, self._since = max(0.0, busy - own) / total, now
        if self._fraction is None:
            return f"measuring the CPU use of other processes for {WINDOW:g} s"
        if self._fraction > OTHERS:
            return f"other processes use {self._fraction:.0%} of the CPU, resumes at {OTHERS:.0%}"
        return None

    def _times(self) -> _Times:
        try:
            first = self._stat.read_text("ascii").partition("\n")[0].removeprefix("cpu ")
            user, nice, system, idle, waiting, interrupts, soft = map(int, first.split()[:7])
        except (OSError, ValueError) as failure:
            raise NoProcessorTimes(
                "Cannot determine whether this device is idle.",
                context=f"{self._stat}: {failure}",
                hint="drop this limit; it needs Linux.",
            ) from failure
        busy = user + nice + system + interrupts + soft
        ticks = os.sysconf("SC_CLK_TCK")
        return _Times((busy + idle + waiting) / ticks, busy / ticks, time.process_time())
