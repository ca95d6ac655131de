"""What a run reports: plain values, frozen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """Loss (weighted mean over the data), accuracy (0 to 1; ``None`` without class labels), number of examples."""

    loss: float
    accuracy: float | None
    examples: int


@dataclass(frozen=True)
class Record:
    """One line of a run's history: after ``epoch`` epochs and ``step`` optimizer steps (0: before training).

    ``loss`` is the mean training loss of the epoch, ``held_out_loss`` and ``held_out_accuracy`` those of the held-out
    data; ``None`` where there is none.
    """

    epoch: int
    step: int
    loss: float | None
    held_out_loss: float | None
    held_out_accuracy: float | None


@dataclass(frozen=True)
class Progress:
    """Handed to ``progress`` after each step: ``step`` of ``total`` (``None``: unknown), epoch counted from 1."""

    step: int
    total: int | None
    epoch: int
    loss: float
    lr: float
    examples_per_second: float


@dataclass(frozen=True)
class Report:
    """What ``fit`` did.

    ``stopped`` is ``epochs`` (all done), ``max_steps`` or ``patience``. ``best`` is the line of the history whose
    adapter was kept; without held-out data it is ``None`` and the last adapter stands. Where ``finished`` is ``False``,
    a pause ended the call, ``stopped`` is its reason, and the same call goes on from there.
    """

    steps: int
    examples: int
    stopped: str
    history: tuple[Record, ...]
    best: Record | None
    finished: bool = True

    @property
    def loss(self) -> float | None:
        """The mean training loss of the last epoch; ``None`` where no step was taken."""
        return self.history[-1].loss if self.history else None
