"""The state of a run as frozen values, replaced as a whole after each step, so that an interrupt cannot tear it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from edgepeft_runtime.engine.engine import Step, TrainState
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import StateError, UnknownCheckpoint
from edgepeft_runtime.files import strict_json
from edgepeft_runtime.files.schema import BadFields, Mark, Natural, read, write
from edgepeft_runtime.train.records import EpochRecord, FitReport, Loss


@dataclass(frozen=True)
class FitState:
    """One call of ``fit``: its settings and its progress.

    Attributes:
        settings: the settings that must be equal when the call is resumed, as plain JSON values.
        steps: optimizer steps taken.
        examples: examples trained on, repeats counted.
        epoch: epochs completed.
        batches: batches used of the current epoch.
        loss_sum: weighted sum of the losses of the current epoch.
        loss_weight: sum of their weights.
        epochs_since_best: epochs since the best held-out result.
        best: index of the best record in ``history``.
        stopped: why the call ended; ``None`` while it is unfinished.
        history: one record per epoch, and one before training where there is held-out data.
    """

    settings: Mapping[str, object]
    steps: Natural = 0
    examples: Natural = 0
    epoch: Natural = 0
    batches: Natural = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    epochs_since_best: Natural = 0
    best: int | None = None
    stopped: str | None = None
    history: tuple[EpochRecord, ...] = ()

    def after_step(self, step: Step, examples: int, batches: int) -> FitState:
        """Return the state after an optimizer step."""
        return replace(
            self,
            steps=self.steps + 1,
            examples=self.examples + examples,
            batches=self.batches + batches,
            loss_sum=self.loss_sum + step.loss_sum,
            loss_weight=self.loss_weight + step.loss_weight,
        )

    def after_epoch(self, epoch: int, evaluation: Evaluation | None) -> FitState:
        """Return the state at the start of the next epoch; a better held-out result becomes the best."""
        loss = self.loss_sum / self.loss_weight if self.loss_weight else None
        record = EpochRecord(epoch, self.steps, loss, None, None)
        best, since = self.best, self.epochs_since_best
        if evaluation is not None:
            metric = evaluation.deciding.value if evaluation.metrics else None
            record = EpochRecord(epoch, self.steps, loss, evaluation.loss, evaluation.accuracy, metric)
            best, since = (len(self.history), 0) if self.is_better(evaluation) else (best, since + 1)
        start = replace(self, epoch=epoch, batches=0, loss_sum=0.0, loss_weight=0.0)
        return replace(start, best=best, epochs_since_best=since, history=(*self.history, record))

    def is_better(self, evaluation: Evaluation) -> bool:
        """Whether the held-out loss, or the metric that replaces it, is better than the best so far."""
        record = None if self.best is None else self.history[self.best]
        if record is None:
            return evaluation.deciding.better_than(None)
        return evaluation.deciding.better_than(record.held_out_metric if evaluation.metrics else record.held_out_loss)

    def report(self) -> FitReport:
        """Return the report for the caller of ``fit``."""
        best = None if self.best is None else self.history[self.best]
        return FitReport(self.steps, self.examples, self.stopped or "", self.history, best)


@dataclass(frozen=True)
class Run:
    """A run: everything that a checkpoint keeps.

    Attributes:
        state: parameters and optimizer state.
        seed: seed of the shuffling.
        best: state with the best held-out loss of the current call of ``fit``.
        step: optimizer steps taken.
        examples: examples trained on, repeats counted.
        loss_before: training loss of the first step.
        loss_after: training loss of the last step or, after an epoch, the mean of the epoch.
        held_out_before: first held-out loss.
        held_out_after: held-out loss of the current parameters; ``None`` if unknown.
        fits: the calls of ``fit``, in order.
    """

    state: Annotated[TrainState, Mark.APART]
    seed: Natural
    best: Annotated[TrainState | None, Mark.APART] = None
    step: Natural = 0
    examples: Natural = 0
    loss_before: Loss = None
    loss_after: Loss = None
    held_out_before: Loss = None
    held_out_after: Loss = None
    fits: tuple[FitState, ...] = ()

    def after_step(self, step: Step, examples: int) -> Run:
        """Return the run after an optimizer step."""
        loss = step.loss_sum / step.loss_weight
        before = loss if self.loss_before is None else self.loss_before
        return replace(
            self,
            state=step.state,
            step=self.step + 1,
            examples=self.examples + examples,
            loss_before=before,
            loss_after=loss,
            held_out_after=None,
        )

    def after_epoch(self, epoch: int, evaluation: Evaluation | None) -> Run:
        """Return the run at the start of the next epoch of the current call of ``fit``."""
        fit = self.fits[-1]
        after = fit.after_epoch(epoch, evaluation)
        loss = after.history[-1].loss
        run = replace(self.with_fit(after), loss_after=self.loss_after if loss is None else loss)
        if evaluation is None:
            return run
        best = self.state if fit.is_better(evaluation) else self.best
        before = evaluation.loss if self.held_out_before is None else self.held_out_before
        return replace(run, best=best, held_out_before=before, held_out_after=evaluation.loss)

    def after_fit(self, stopped: str) -> Run:
        """Return the run at the end of the current call of ``fit``, with the best parameters."""
        fit = self.fits[-1]
        run = self.with_fit(replace(fit, stopped=stopped))
        if run.best is None or fit.best is None:
            return run
        # The optimizer's state stays that of the last step: only further training uses it.
        state = TrainState(run.best.parameters, run.state.optimizer)
        return replace(run, state=state, best=None, held_out_after=fit.history[fit.best].held_out_loss)

    def with_more_epochs(self, settings: Mapping[str, object]) -> Run:
        """Return the run with the last call of ``fit`` unfinished again, under settings of more epochs.

        If that call had finished with held-out data, training continues from the adapter that it kept.
        """
        fit = self.fits[-1]
        kept = fit.stopped is not None and fit.best is not None
        run = replace(self, best=self.state) if kept else self
        return run.with_fit(replace(fit, settings=settings, stopped=None))

    def with_fit(self, fit: FitState) -> Run:
        """Return the run with another state of the current call of ``fit``."""
        return replace(self, fits=(*self.fits[:-1], fit))

    @property
    def history(self) -> tuple[EpochRecord, ...]:
        """The records of all calls of ``fit``."""
        return tuple(record for fit in self.fits for record in fit.history)

    def to_json(self) -> str:
        """Return everything but the tensors as JSON."""
        return json.dumps(write(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, state: TrainState, best: TrainState | None) -> Run:
        """Read what ``to_json`` wrote.

        Raises:
            StateError: the text is something else.
        """
        try:
            run = read(cls, strict_json.loads(text), "run", state=state, best=best)
        except BadFields as wrong:
            raise _unknown(wrong.message, wrong.context) from None
        except ValueError as failure:
            raise _unknown("The run is not JSON.", str(failure)) from None
        for fit in run.fits:
            if fit.best is not None and not 0 <= fit.best < len(fit.history):
                raise _unknown(
                    "run: the field 'best' is wrong.", f"expected an index into the history, found {fit.best}"
                )
        return run


def _unknown(message: str, context: str) -> StateError:
    hint = "resume it with the edgepeft that wrote it, or use another directory."
    return UnknownCheckpoint(message, context=context, hint=hint)
