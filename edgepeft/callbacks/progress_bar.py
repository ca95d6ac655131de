"""A progress bar in notebooks and terminals, by tqdm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepeft_runtime.figures import number
from edgepeft_runtime.train.callbacks import Callback
from edgepeft_runtime.train.records import EpochRecord, FitReport, Progress, needing

if TYPE_CHECKING:
    from tqdm import tqdm


class ProgressBar(Callback):
    """Shows the steps of ``fit`` as a bar, ``trainer.fit(data, callbacks=[edgepeft.ProgressBar()])``.

    Raises:
        MissingExtra: tqdm is not installed.
    """

    def __init__(self) -> None:
        with needing("tqdm"):
            from tqdm.auto import tqdm
        self._make: type[tqdm] = tqdm
        self._bar: tqdm | None = None

    def on_start(self, total: int | None, steps: int) -> None:
        """Show the bar, at the steps of an earlier process."""
        self._bar = self._make(total=total, initial=steps, unit="step")

    def on_step(self, progress: Progress) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(progress.step - self._bar.n)
            self._bar.set_postfix(epoch=progress.epoch, loss=number(progress.loss), refresh=False)

    def on_epoch(self, record: EpochRecord) -> None:
        """Print the losses of the epoch above the bar."""
        if self._bar is not None:
            held_out = "" if record.held_out_loss is None else f"  held out {number(record.held_out_loss)}"
            self._bar.write(f"epoch {record.epoch}  loss {number(record.loss)}{held_out}")

    def on_end(self, report: FitReport) -> None:  # noqa: ARG002  (the signature is the callback's)
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
