"""The progress of a run: one line that is updated on a terminal, a line per epoch in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from edgepeft_runtime.train.records import Progress, StepPart

_PAUSE = 0.1
"""Seconds between two updates of the line, so that a slow terminal does not delay training."""


class Counter:
    """Shows progress when called after each step. Use it as a context, which ends the line before other output."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._width = 0
        self._shown = 0.0
        self._last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Show a step, if the last update is long enough ago."""
        before, self._last = self._last, progress
        if self._terminal:
            now = time.monotonic()
            if now - self._shown >= _PAUSE:
                self._shown = now
                self._update(progress)
        elif before is not None and before.epoch != progress.epoch:
            self._stream.write(_line(before) + "\n")

    def part(self, part: StepPart) -> None:
        """Show on a terminal how far a long step has come."""
        if self._terminal:
            self._write(f"step {part.step}: {part.done} of {part.calls} parts in {part.seconds:.0f} s")

    def show(self, text: str) -> None:
        """Print a line of its own, between two steps."""
        end = "\n" if self._terminal and self._width else ""
        self._stream.write(f"{end}{text}\n")
        self._stream.flush()
        self._width = 0

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            if self._terminal:
                self._update(self._last)
                self._stream.write("\n")
            else:
                self._stream.write(_line(self._last) + "\n")
            self._stream.flush()

    def _update(self, progress: Progress) -> None:
        self._write(_line(progress))

    def _write(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)


def _line(progress: Progress) -> str:
    total = "" if progress.total is None else f"/{progress.total}"
    return (
        f"step {progress.step}{total}  epoch {progress.epoch}  loss {progress.loss:.4f}  lr {progress.lr:.2e}  "
        f"{progress.examples_per_second:.1f} examples/s"
    )
