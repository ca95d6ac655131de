"""Progress, history and report of ``fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.files.schema import Mark, Natural

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
    """Passed to ``part`` within a long optimizer step.

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
    """Passed to ``progress`` after each optimizer step.

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
        stopped: why it ended: ``epochs`` (all done), ``max_steps``, ``patience``, or the reason of a pause.
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
