"""The progress of a run, one line that is rewritten on a terminal, and of the stages of a long command."""

from __future__ import annotations

import time
from typing import TextIO

from edgepeft.cli.screen.line import Line
from edgepeft.cli.screen.verbosity import is_quiet
from edgepeft_runtime.train.callbacks import Callback
from edgepeft_runtime.train.records import Progress, StepPart

_PAUSE = 0.1
"""Seconds between two updates of the line, so that a slow terminal does not delay training."""


class Stages:
    """Shows the stages of a command when called before each: one line, to which a terminal adds its seconds.

    Use it as a context, which ends the last stage.
    """

    def __init__(self, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self._line = Line(stream, silent=silent or is_quiet())
        self._stage: tuple[str, float] | None = None

    def __call__(self, text: str) -> None:
        """End the stage before, and begin one."""
        self.end()
        if self._line.terminal:
            self._stage = text, time.monotonic()
            self._line.rewrite(f"{text} …")
        else:
            self._line.write(f"{text} …")

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the last stage."""
        if self._stage is not None:
            text, began = self._stage
            self._line.write(f"{text}  {time.monotonic() - began:.1f} s")
            self._stage = None


class Counter(Callback):
    """Shows the progress of each step. Use it as a context, which ends the line before other output."""

    def __init__(self, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self._line = Line(stream, silent=silent or is_quiet())
        self._shown = 0.0
        self._last: Progress | None = None

    def on_step(self, progress: Progress) -> None:
        """Show a step, if the last update is long enough ago."""
        before, self._last = self._last, progress
        if self._line.terminal:
            now = time.monotonic()
            if now - self._shown >= _PAUSE:
                self._shown = now
                self._line.rewrite(_line(progress))
        elif before is not None and before.epoch != progress.epoch:
            self._line.write(_line(before))

    def on_part(self, part: StepPart) -> None:
        """Show on a terminal how far a long step has come."""
        if self._line.terminal:
            self._line.rewrite(f"step {part.step}: {part.done} of {part.calls} parts in {part.seconds:.0f} s")

    def show(self, text: str) -> None:
        """Print a line of its own, between two steps."""
        self._line.end()
        self._line.write(text)

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._line.write(_line(self._last))


def _line(progress: Progress) -> str:
    total = "" if progress.total is None else f"/{progress.total}"
    return (
        f"step {progress.step}{total}  epoch {progress.epoch}  loss {progress.loss:.4f}  lr {progress.lr:.2e}  "
        f"{progress.examples_per_second:.1f} examples/s"
    )
