"""The line that shows how far a run is."""

from __future__ import annotations

import io

from edgepeft.cli.screen.progress import Counter
from edgepeft_runtime.train.records import Progress, StepPart


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(number: int, epoch: int, loss: float = 0.5) -> Progress:
    return Progress(number, 6, epoch, loss, 1e-3, 12.5)


def test_a_log_gets_a_line_per_epoch() -> None:
    """A run of hours must not fill a log: one line at the end of each epoch."""
    log = io.StringIO()
    with Counter(log) as counter:
        for number in range(1, 7):
            counter.on_step(step(number, 1 + (number - 1) // 2))
    assert [line.split("  ")[0] for line in log.getvalue().splitlines()] == ["step 2/6", "step 4/6", "step 6/6"]


def test_a_terminal_gets_one_line_that_ends_with_the_last_step() -> None:
    """The line is rewritten, covers a longer one, and ends with a newline."""
    terminal = Terminal()
    with Counter(terminal) as counter:
        counter.on_step(step(1, 1, loss=1234567.0))
        counter.on_step(step(6, 3))
    *_, last, end = terminal.getvalue().replace("\r", "\n").split("\n")
    assert last.rstrip() == "step 6/6  epoch 3  loss 0.5000  lr 1.00e-03  12.5 examples/s"
    assert len(last) == len("step 1/6  epoch 1  loss 1234567.0000  lr 1.00e-03  12.5 examples/s")
    assert end == ""


def test_a_run_without_steps_shows_nothing() -> None:
    """A run that had ended before has no progress."""
    log = io.StringIO()
    with Counter(log):
        pass
    assert log.getvalue() == ""


def test_a_long_step_shows_its_parts_on_a_terminal_only() -> None:
    """The line is that of the step again when it ends, and covers what was there."""
    for stream, expected in (Terminal(), "\rstep 2: 12 of 50 parts in 4 s\rstep 2/6"), (io.StringIO(), "step 2/6"):
        with Counter(stream) as counter:
            counter.on_part(StepPart(2, 12, 50, 3.9))
            counter.on_step(step(2, 1))
        assert stream.getvalue().startswith(expected)
