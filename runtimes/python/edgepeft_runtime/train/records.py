"""Progress, history and report of ``fit``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from edgepeft_runtime.errors import MissingExtra
from edgepeft_runtime.figures import number
from edgepeft_runtime.files.schema import Mark, Natural
from edgepeft_runtime.tables import html_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

Loss = Annotated[float | None, Mark.NOT_FINITE]


@dataclass(frozen=True)
class EpochRecord:
    """The state of a run after an epoch, or before training where there is held-out data.

    Attributes:
        epoch: epochs completed; 0 before training.
        step: optimizer steps taken.
        loss: mean training loss of the epoch; ``None`` before training.
        held_out_loss: loss on the held-out data; ``None`` without such data.
        held_out_accuracy: fraction of correct labels, 0 to 1; ``None`` without held-out data or class labels.
        held_out_metric: value of the metric that chooses the adapter; ``None`` where the loss chooses it.
    """

    epoch: Natural
    step: Natural
    loss: Loss
    held_out_loss: Loss
    held_out_accuracy: Loss
    held_out_metric: Annotated[Loss, Mark.OMITTED] = None


@dataclass(frozen=True)
class StepPart:
    """Passed to ``on_part`` within a long optimizer step.

    Attributes:
        step: the step that is being computed, counted from 1 in this call of ``fit``.
        done: calls of graphs of the current batch that have ended.
        calls: calls of graphs that the batch takes.
        seconds: since the step began.
    """

    step: int
    done: int
    calls: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Passed to ``on_step`` after each optimizer step.

    Attributes:
        step: optimizer steps taken in this call of ``fit``.
        total: steps that it will take; ``None`` if unknown.
        epoch: the current epoch, counted from 1.
        loss: mean loss of the step, before its update.
        lr: learning rate of the step.
        examples_per_second: mean speed of the steps taken by this process.
    """

    step: int
    total: int | None
    epoch: int
    loss: float
    lr: float
    examples_per_second: float


@dataclass(frozen=True)
class FitReport:
    """Returned by ``fit``.

    Attributes:
        steps: optimizer steps taken.
        examples: examples trained on, repeats counted.
        stopped: why it ended: ``epochs`` (all done), ``max_steps``, ``patience``, ``callback``, or the reason
            of a pause.
        history: one record per epoch, and one before training where there is held-out data.
        best: the record whose adapter was kept; ``None`` without held-out data, where the last adapter is kept.
        finished: whether the call is complete. If not, a pause ended it, and the same call resumes it.
    """

    steps: int
    examples: int
    stopped: str
    history: tuple[EpochRecord, ...]
    best: EpochRecord | None
    finished: bool = True

    @property
    def loss(self) -> float | None:
        """The mean training loss of the last epoch; ``None`` if no step was taken."""
        return self.history[-1].loss if self.history else None

    def to_frame(self) -> DataFrame:
        """Return the history as a data frame of pandas, a row per epoch.

        Raises:
            MissingExtra: pandas is not installed.
        """
        with needing("pandas"):
            import pandas
        return pandas.DataFrame([asdict(record) for record in self.history]).set_index("epoch")

    def plot(self) -> Axes:
        """Draw the losses, and the held-out accuracy or metric if there is one, with matplotlib; return its axes.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        with needing("matplotlib"):
            from matplotlib import pyplot
            from matplotlib.ticker import MaxNLocator
        axes: Axes = pyplot.subplots(layout="constrained")[1]
        epochs, others, lines = [record.epoch for record in self.history], 0, []
        for index, (label, values) in enumerate(self.curves().items()):
            own = axes if "loss" in label else axes.twinx()
            known = [float("nan") if value is None else value for value in values]
            lines += own.plot(epochs, known, label=label, color=f"C{index}", marker=".")
            own.set_ylabel("loss" if own is axes else label)
            if own is not axes:  # a second one would cover the numbers of the first
                own.spines["right"].set_position(("outward", 50 * others))
                others += 1
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # Above, where it covers no line: those of the right axes are drawn over the legend of the left one.
        axes.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines), frameon=False)
        return axes

    def curves(self) -> dict[str, list[float | None]]:
        """Return by name what the history has for each of its records, without what it never has."""
        fields = ("loss", "held_out_loss", "held_out_accuracy", "held_out_metric")
        curves = {name.replace("_", " "): [getattr(record, name) for record in self.history] for name in fields}
        return {name: values for name, values in curves.items() if any(value is not None for value in values)}

    def _repr_html_(self) -> str:
        """A row per epoch; the kept one is marked."""
        curves = self.curves()
        rows = [
            (record.epoch, *(number(values[row]) for values in curves.values()), "kept" if record == self.best else "")
            for row, record in enumerate(self.history)
        ]
        summary = f"{self.steps} steps, {self.examples} examples, stopped by {self.stopped}"
        return f"{html_table(rows, ['epoch', *curves, ''])}<p>{summary}</p>"


@contextmanager
def needing(package: str) -> Iterator[None]:
    """Turn the failing import of an optional package into an error that says how to install it."""
    try:
        yield
    except ImportError as failure:
        message = f"This needs the package {package}, which is not installed."
        raise MissingExtra(message, context=None, hint=f"pip install {package}") from failure
