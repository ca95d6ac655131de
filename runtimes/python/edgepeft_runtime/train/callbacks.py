"""Objects that ``fit`` calls: after steps and epochs, when the run is saved, and within long steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgepeft_runtime.train.records import EpochRecord, FitReport, Progress, StepPart


class Callback:
    """Called by ``fit``; a subclass overrides what it needs.

    If ``on_step`` or ``on_epoch`` returns ``True``, training stops: the epoch is closed with its evaluation, and the
    report says ``callback``. An exception leaves the run as it was after the last step, and ends ``fit``.
    """

    def on_start(self, total: int | None, steps: int) -> None:
        """Called before the first step of a call.

        Args:
            total: steps that the call of ``fit`` takes; ``None`` if unknown.
            steps: steps that an earlier process has taken.
        """

    def on_step(self, progress: Progress) -> bool | None:
        """Called after each optimizer step."""

    def on_part(self, part: StepPart) -> None:
        """Called about once a second within a step of several graphs that takes longer than two."""

    def on_epoch(self, record: EpochRecord) -> bool | None:
        """Called after each epoch and, where there is held-out data, before training."""

    def on_save(self, folder: Path) -> None:
        """Called after each checkpoint, with the state directory."""

    def on_end(self, report: FitReport) -> None:
        """Called at the end of a call, also if a pause ended it; not after an exception."""


CallbackLike = Callback | Callable[[Progress], bool | None]
"""A callback, or a function that is called after each step."""


class Callbacks(Callback):
    """Several callbacks as one."""

    def __init__(self, callbacks: Sequence[CallbackLike]) -> None:
        self._all = [one if isinstance(one, Callback) else _Function(one) for one in callbacks]

    def __bool__(self) -> bool:
        return bool(self._all)

    def on_start(self, total: int | None, steps: int) -> None:
        """Call all."""
        for one in self._all:
            one.on_start(total, steps)

    def on_step(self, progress: Progress) -> bool:
        """Call all; return whether any of them stops the run."""
        return True in [one.on_step(progress) for one in self._all]

    def on_part(self, part: StepPart) -> None:
        """Call all."""
        for one in self._all:
            one.on_part(part)

    def on_epoch(self, record: EpochRecord) -> bool:
        """Call all; return whether any of them stops the run."""
        return True in [one.on_epoch(record) for one in self._all]

    def on_save(self, folder: Path) -> None:
        """Call all."""
        for one in self._all:
            one.on_save(folder)

    def on_end(self, report: FitReport) -> None:
        """Call all."""
        for one in self._all:
            one.on_end(report)


class _Function(Callback):
    """A function of the progress."""

    def __init__(self, function: Callable[[Progress], bool | None]) -> None:
        self._function = function

    def on_step(self, progress: Progress) -> bool | None:
        """Call the function."""
        return self._function(progress)
