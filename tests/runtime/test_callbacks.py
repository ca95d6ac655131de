"""Callbacks of ``fit``: when they are called, what they get, and how they stop a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepeft_runtime import Callback, EpochRecord, FitReport, Progress, Trainer
from tests.support.tiny_bundle import examples

DATA, HELD_OUT = examples(45), examples(30, seed=1)


class Journal(Callback):
    """Notes every call; stops at a step, or after an epoch."""

    def __init__(self, stop_at: int | None = None, last_epoch: int | None = None) -> None:
        self.lines: list[str] = []
        self.stop_at, self.last_epoch = stop_at, last_epoch

    def on_start(self, total: int | None, steps: int) -> None:
        self.lines.append(f"start {steps} of {total}")

    def on_step(self, progress: Progress) -> bool:
        self.lines.append(f"step {progress.step}")
        return progress.step == self.stop_at

    def on_epoch(self, record: EpochRecord) -> bool:
        self.lines.append(f"epoch {record.epoch} {record.held_out_loss is not None}")
        return record.epoch == self.last_epoch

    def on_save(self, folder: Path) -> None:
        self.lines.append(f"save {folder.name}")

    def on_end(self, report: FitReport) -> None:
        self.lines.append(f"end {report.stopped}")


def test_callbacks_are_called_in_order(bundle: Path, tmp_path: Path) -> None:
    """Each event once, after what it is about; a function is called after steps."""
    journal, steps = Journal(), list[int]()
    with Trainer.open(bundle, state=tmp_path / "run") as trainer:
        trainer.fit(
            DATA, batch_size=15, epochs=2, validate=HELD_OUT, callbacks=[journal, lambda now: steps.append(now.step)]
        )
    epochs = [["step 1", "step 2", "step 3"], ["step 4", "step 5", "step 6"]]
    expected = ["start 0 of 6", "save run", "epoch 0 True"]
    for number, lines in enumerate(epochs, start=1):
        expected += [*lines, "save run", f"epoch {number} True"]
    assert journal.lines == [*expected, "save run", "end epochs"]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("journal", "steps"), [(Journal(stop_at=4), 4), (Journal(last_epoch=1), 3)])
def test_a_callback_stops_the_run(bundle: Path, tmp_path: Path, journal: Journal, steps: int) -> None:
    """The epoch is closed with its evaluation, the best adapter is kept, and the run is finished."""
    settings = {"batch_size": 15, "epochs": 9, "validate": HELD_OUT}
    with Trainer.open(bundle, state=tmp_path) as trainer:
        report = trainer.fit(DATA, callbacks=[journal], **settings)
        assert (report.stopped, report.steps, report.finished) == ("callback", steps, True)
        assert report.best is not None and report.history[-1].step == steps
        assert trainer.evaluate(HELD_OUT).loss == pytest.approx(report.best.held_out_loss)
    with Trainer.open(bundle, state=tmp_path) as trainer:
        assert trainer.fit(DATA, **settings) == report


def test_an_error_of_a_callback_ends_fit(bundle: Path) -> None:
    """It is the caller's; the run is as after the last step."""

    def fails(progress: Progress) -> None:
        raise ValueError(progress.step)

    with Trainer.open(bundle) as trainer:
        with pytest.raises(ValueError, match="1"):
            trainer.fit(DATA, callbacks=[fails])
        assert trainer.steps == 1
