"""Stop or pause training early: limits of the device, and SIGTERM."""

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
    from edgepeft.cli.screen.progress import Counter
    from edgepeft_runtime.train.limits import Limits, Pause

_LOWEST = 19


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a service. The run is saved, as after Ctrl-C."""


def limit_options(command: F) -> F:
    """Add ``--max-minutes``, ``--max-temperature`` and ``--idle-only``."""
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
    """Return the limits, counted from now on. Call it before onnxruntime starts threads: they inherit the priority."""
    from edgepeft_runtime.train.limits import Limits

    if idle_only and hasattr(os, "nice"):
        os.nice(_LOWEST)
    return Limits(minutes=max_minutes, temperature=max_temperature, idle=idle_only)


class LimitReporter:
    """The ``pause`` of ``fit``: checks the limits and shows when training pauses and resumes."""

    def __init__(self, limits: Limits, counter: Counter) -> None:
        self._limits = limits
        self._counter = counter
        self._last: Pause | None = None

    def __call__(self) -> Pause | None:
        """Return the pause that the limits require; ``None`` if they allow training."""
        before, self._last = self._last, self._limits()
        if self._last is None:
            if before is not None:
                self._counter.show("resuming")
        elif self.ended is None and (before is None or before.reason != self._last.reason):
            self._counter.show(f"waiting: {self._last.detail}")
        return self._last

    @property
    def ended(self) -> str | None:
        """The reason why the limits stopped training; ``None`` if they did not."""
        return self._last.detail if self._last is not None and self._last.seconds is None else None


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise ``Terminated``, once: a second signal must not interrupt the cleanup."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
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
