"""What ends a training before its end, or makes it wait: limits of the device, and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from edgepeft.cli.declared import F

if TYPE_CHECKING:
    from edgepeft.cli.progress import Counter
    from edgepeft_runtime.train.limits import Limits, Pause

UNFINISHED = 75
"""Exit code of a run that is saved and not at its end: EX_TEMPFAIL of sysexits(3), "the user is invited to retry"."""

_LOWEST = 19


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a service gets it when it is stopped; it saves as Ctrl-C does."""


def limit_options(command: F) -> F:
    """``--max-minutes``, ``--max-temperature`` and ``--idle-only``."""
    above_zero = click.FloatRange(0.0, min_open=True)
    for option in (
        click.option(
            "--idle-only",
            is_flag=True,
            help="Run at the lowest priority and pause while other programs use over a fifth of the processors.",
        ),
        click.option("--max-temperature", type=above_zero, help="Pause while the device is hotter than this, in °C."),
        click.option("--max-minutes", type=above_zero, help="Save and stop after this many minutes, pauses included."),
    ):
        command = option(command)
    return command


def limits(max_minutes: float | None, max_temperature: float | None, idle_only: bool) -> Limits:
    """The limits, from now on; to be made before the threads of onnxruntime, which inherit the priority."""
    from edgepeft_runtime.train.limits import Limits

    if idle_only and hasattr(os, "nice"):
        os.nice(_LOWEST)
    return Limits(minutes=max_minutes, temperature=max_temperature, idle=idle_only)


class Teller:
    """Asks the limits for ``fit``, and tells when training begins to wait and when it goes on."""

    def __init__(self, limits: Limits, counter: Counter) -> None:
        self._limits = limits
        self._counter = counter
        self._last: Pause | None = None

    def __call__(self) -> Pause | None:
        """What the limits say."""
        before, self._last = self._last, self._limits()
        if self._last is None:
            if before is not None:
                self._counter.tell("resuming")
        elif self.ended is None and (before is None or before.reason != self._last.reason):
            self._counter.tell(f"waiting: {self._last.detail}")
        return self._last

    @property
    def ended(self) -> str | None:
        """Why training ended before its end, if it did."""
        return self._last.detail if self._last is not None and self._last.seconds is None else None


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated`, once: what follows on it must not be cut short by a second."""
    if threading.current_thread() is not threading.main_thread():  # where Python does not allow it
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
