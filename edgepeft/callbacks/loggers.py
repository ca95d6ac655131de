"""Loggers for TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgepeft_runtime.train.callbacks import Callback
from edgepeft_runtime.train.records import EpochRecord, FitReport, Progress, needing

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run


class Logger(Callback):
    """Logs loss, learning rate and speed of each step, and the figures of each epoch."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values by name at a step."""

    def on_step(self, progress: Progress) -> None:
        """Log the figures of a step."""
        speed = progress.examples_per_second
        self.log({"loss": progress.loss, "lr": progress.lr, "examples_per_second": speed}, progress.step)

    def on_epoch(self, record: EpochRecord) -> None:
        """Log the figures of an epoch, as far as it has them."""
        names = ("loss", "held_out_loss", "held_out_accuracy", "held_out_metric")
        values = {f"epoch/{name}": getattr(record, name) for name in names}
        self.log({name: value for name, value in values.items() if value is not None}, record.step)


class TensorBoardLogger(Logger):
    """Writes events that TensorBoard shows, with ``tensorboardX``.

    Args:
        folder: Where the events are written.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        with needing("tensorboardX"):
            from tensorboardX import SummaryWriter
        self._writer = SummaryWriter(str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write one event for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def on_end(self, report: FitReport) -> None:  # noqa: ARG002  (the signature is the callback's)
        """Write the file."""
        self._writer.close()


class MlflowLogger(Logger):
    """Logs to the current run of MLflow, or to a run of its own.

    Args:
        run_name: Name of a new run, which ends with ``fit``; ``None`` logs to the run that is active.

    Raises:
        MissingExtra: mlflow is not installed.
    """

    def __init__(self, run_name: str | None = None) -> None:
        with needing("mlflow"):
            import mlflow
        self._mlflow, self._run_name = mlflow, run_name

    def on_start(self, total: int | None, steps: int) -> None:  # noqa: ARG002  (the signature is the callback's)
        """Start the run."""
        if self._run_name is not None:
            self._mlflow.start_run(run_name=self._run_name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics; MLflow's names have no colon."""
        self._mlflow.log_metrics(dict(values), step=step)

    def on_end(self, report: FitReport) -> None:
        """Log why training stopped, and end an own run."""
        self._mlflow.set_tag("stopped", report.stopped)
        if self._run_name is not None:
            self._mlflow.end_run()


class WandbLogger(Logger):
    """Logs to a run of Weights & Biases.

    Args:
        run: What ``wandb.init`` returned; the caller finishes it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step; those of its epoch join them."""
        self._run.log(dict(values), step=step)

    def on_end(self, report: FitReport) -> None:
        """Write the last step, and why training stopped."""
        self._run.log({}, commit=True)
        self._run.summary["stopped"] = report.stopped
