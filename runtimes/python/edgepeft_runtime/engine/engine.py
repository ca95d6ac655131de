"""The interface of the engines, which run a bundle's graphs.

An engine keeps no parameters of its own. They live in a ``TrainState``, which is never changed: a step takes a
state and returns a new one. A failed step therefore changes nothing, and keeping the best state costs no copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepeft_runtime.bundle.specs import SparseSpec
from edgepeft_runtime.engine.compared import Verdict
from edgepeft_runtime.engine.row_store import RowStore
from edgepeft_runtime.engine.sessions import OrtTensors
from edgepeft_runtime.errors import BatchError, Diverged, NoLabelCounts
from edgepeft_runtime.files.tensorfile import Array

GRAD_NORM = "grad_norm"

Cache = OrtTensors
"""Keys and values of the tokens read so far, by the ``past`` names of the manifest."""


@dataclass(frozen=True)
class TrainState:
    """The values that a step changes.

    Attributes:
        parameters: trainable and non-trainable parameters by name.
        optimizer: state of the optimizer by name, such as the moments of AdamW.
    """

    parameters: OrtTensors
    optimizer: OrtTensors


@dataclass(frozen=True)
class Step:
    """The result of one optimizer step.

    Attributes:
        state: the state after the step.
        loss_sum: weighted sum of the losses, before the step. The mean loss is ``loss_sum / loss_weight``.
        loss_weight: sum of the weights: the number of labels that are not ignored, or their class weights.
        grad_norm: L2 norm of the gradient of the mean loss, before clipping.
    """

    state: TrainState
    loss_sum: float
    loss_weight: float
    grad_norm: float


@dataclass(frozen=True)
class EvalResult:
    """Loss of one batch, as in ``Step``, and the model's outputs by name."""

    loss_sum: float
    loss_weight: float
    outputs: dict[str, Array]


class Engine(Protocol):
    """Runs the programs of one bundle. Batches are checked before they are passed to it."""

    def load(self, parameters: Mapping[str, Array], optimizer: Mapping[str, Array] | None = None) -> TrainState:
        """Copy arrays into a state; without ``optimizer``, the optimizer starts from zeros."""

    def arrays(self, state: TrainState) -> tuple[dict[str, Array], dict[str, Array]]:
        """Copy parameters and optimizer state into arrays."""

    def train(self, state: TrainState, batches: Sequence[Mapping[str, Array]], *, lr: float, step: int) -> Step:
        """Take one optimizer step over all ``batches``; ``step`` is 1 for the first.

        Raises:
            BatchError: every label of every batch is ignored.
            TrainingError: a loss or the gradient is not finite, or ONNX Runtime failed. ``state`` stays as it was.
        """

    def load_graphs(self) -> None:
        """Load the graphs of a train step, which the first step does otherwise."""

    def gradients(self, state: TrainState, batch: Mapping[str, Array], specs: Sequence[SparseSpec]) -> list[Array]:
        """Return the dense gradients of ``loss_sum``, by which the elements that train are picked."""

    def evaluate(self, state: TrainState, batch: Mapping[str, Array]) -> EvalResult:
        """Return loss and outputs of one batch."""

    def infer(self, state: TrainState, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of one batch without labels."""

    def decode(self, state: TrainState, inputs: Mapping[str, Array], cache: Cache | None) -> tuple[Array, Cache]:
        """Return the logits of the last position, and the cache with the new positions; ``None`` starts a cache."""

    def keep_activations(self, rows: RowStore | None) -> None:
        """Start ``train`` from the value that the manifest's ``cache`` names, kept there; ``None`` stops that.

        Raises:
            TrainingError: the engine cannot start a step from a value.
        """

    def watch(self, between: Callable[[int, int], None] | None) -> None:
        """Call ``between`` between two calls of a program, with the number of calls so far and of all.

        What it raises ends the program. ``None`` stops that.
        """

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict for each program that has run with another execution provider."""

    def close(self) -> None:
        """Release the sessions and the memory they map."""


_CTC_HINT = "; CTC is infinite where there are more labels than frames, which zero_infinity leaves out"


def check_finite(what: str, value: float, step: int, lr: float) -> None:
    """Refuse a step whose loss or gradient is not finite."""
    if not math.isfinite(value):
        infinite = what == "loss" and value == math.inf
        raise Diverged(
            f"The {what} of step {step} is not finite; the parameters are those of the step before.",
            context=f"{what}: {value}; learning rate {lr:g}",
            hint="use a smaller learning rate or a warm-up, and look for extreme values in the data"
            f"{_CTC_HINT if infinite else ''}.",
        )


def no_label_counts() -> BatchError:
    """The error of a step whose labels are all ignored."""
    return NoLabelCounts(
        "Every label in this step is ignored, so there is no loss to minimize.",
        context="every label equals the ignore index",
        hint="leave such batches out, or check how the labels were made.",
    )
