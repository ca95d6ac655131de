"""The training loop: epochs, accumulation, schedule, held-out data, early stopping, checkpoints, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.data.datasets import Data, Source, source_of
from edgepeft_runtime.engine.engine import Values
from edgepeft_runtime.errors import DataError, StateError, TrainingError
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.records import Evaluation, Progress, Record, Report
from edgepeft_runtime.train.run import Fit
from edgepeft_runtime.train.schedule import Schedule, schedule_of, unknown_total, warmup_steps

if TYPE_CHECKING:
    from edgepeft_runtime.train.trainer import Trainer


class _Ended(Exception):
    """The pause that is not waited for."""

    def __init__(self, pause: Pause) -> None:
        super().__init__(pause.detail)
        self.reason = pause.reason


@dataclass(frozen=True)
class Plan:
    """The settings that make two calls of ``fit`` the same run; kept in the checkpoint."""

    epochs: int
    batch_size: int
    accumulate: int
    lr: float
    schedule: str
    warmup: int
    shuffle: bool
    patience: int | None
    max_steps: int | None
    total_steps: int | None
    training_examples: int | None
    training_data: str | None
    held_out_examples: int | None
    held_out_data: str | None


def fit(
    trainer: Trainer,
    data: Data,
    *,
    epochs: int,
    batch_size: int,
    accumulate: int,
    lr: float,
    schedule: str,
    warmup: int | float,
    shuffle: bool,
    validate: Data | None,
    patience: int | None,
    save_every: int | None,
    max_steps: int | None,
    progress: Callable[[Progress], None] | None,
    pause: Callable[[], Pause | None] | None,
) -> Report:
    """See :meth:`edgepeft_runtime.train.trainer.Trainer.fit`."""
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("accumulate", accumulate)):
        positive(name, value)
    for name, limit in (("patience", patience), ("save_every", save_every), ("max_steps", max_steps)):
        if limit is not None:
            positive(name, limit)
    if patience is not None and validate is None:
        raise _bad_setting("patience needs held-out data.", "patience without validate", "pass validate=DATA.")
    source = source_of(data, batch_size, shuffle_seed=trainer.seed if shuffle else None)
    held_out = None if validate is None else _held_out_source(validate, batch_size)
    total = _total_steps(source, epochs, accumulate, max_steps)
    if total is None and schedule != "constant":
        raise unknown_total(f"the schedule {schedule!r}")
    plan = Plan(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=float(lr),
        schedule=schedule,
        warmup=warmup_steps(warmup, total),
        shuffle=shuffle,
        patience=patience,
        max_steps=max_steps,
        total_steps=total,
        training_examples=source.examples,
        training_data=source.fingerprint,
        held_out_examples=None if held_out is None else held_out.examples,
        held_out_data=None if held_out is None else held_out.fingerprint,
    )
    return _Loop(trainer, plan, source, held_out, save_every, progress, pause).run()


class _Loop:
    """One call of ``fit`` under way. All it knows of the past is in ``trainer.run``, so it can begin anywhere."""

    def __init__(
        self,
        trainer: Trainer,
        plan: Plan,
        source: Source,
        held_out: Source | None,
        save_every: int | None,
        progress: Callable[[Progress], None] | None,
        pause: Callable[[], Pause | None] | None,
    ) -> None:
        self._trainer = trainer
        self._plan = plan
        self._source = source
        self._held_out = held_out
        self._save_every = save_every
        self._progress = progress
        self._pause = pause
        self._trained = (0, 0.0)  # examples and seconds of the steps taken here
        self._factor: Schedule = schedule_of(plan.schedule, plan.warmup)

    @property
    def _fit(self) -> Fit:
        return self._trainer.run.fits[-1]

    def run(self) -> Report:
        """Begin or go on, to the end."""
        finished = _begin(self._trainer, asdict(self._plan))
        if finished is not None:
            return finished
        try:
            if self._held_out is not None and not self._fit.history:
                self._close_epoch(epoch=0)
            self._pick()
            while (stopped := self._stopped()) is None:
                self._epoch()
            self._finish(stopped)
        except KeyboardInterrupt:
            self._save()
            raise
        except _Ended as ended:  # the call is not over: the next one with these settings goes on
            return replace(self._fit.report(), stopped=ended.reason, finished=False)
        self._trainer.finished_fits += 1
        return self._fit.report()

    def _pick(self) -> None:
        """Let the first batches decide which elements train; a stream that comes once is left to the first step."""
        if self._trainer.must_pick and not self._source.once:
            count = max(spec.batches for spec in self._trainer.bundle.manifest.sparse)
            self._trainer.pick(islice(self._source.batches(0), count))

    def _stopped(self) -> str | None:
        """Why there is no further epoch; never within one, as an epoch cut short is closed like a whole one."""
        fit, plan = self._fit, self._plan
        if fit.place > 0:
            return None
        if plan.patience is not None and fit.worse >= plan.patience:
            return "patience"
        if self._full():
            return "max_steps"
        return "epochs" if fit.epoch >= plan.epochs else None

    def _full(self) -> bool:
        return self._plan.max_steps is not None and self._fit.steps >= self._plan.max_steps

    def _epoch(self) -> None:
        batches = self._source.batches(self._fit.epoch, skip=self._fit.place)
        while not self._full() and (group := list(islice(batches, self._plan.accumulate))):
            self._wait()
            self._step(group)
        if self._fit.place == 0:
            raise DataError(
                "no-data",
                "The data gives no batches.",
                context=f"epoch {self._fit.epoch + 1}",
                hint="a generator gives its batches once: pass a list, or a function from the epoch to its batches.",
            )
        self._close_epoch(self._fit.epoch + 1)

    def _wait(self) -> None:
        """Save and wait as long as something asks for it, or end the call where it asks for that."""
        saved = False
        while self._pause is not None and (asked := self._pause()) is not None:
            if not saved:  # before anything else: a device that is hot or busy may be switched off
                self._save()
                saved = True
            if asked.seconds is None:
                raise _Ended(asked)
            time.sleep(asked.seconds)

    def _step(self, group: list[Batch]) -> None:
        trainer, plan = self._trainer, self._plan
        total = plan.total_steps if plan.total_steps is not None else 0
        lr = plan.lr * self._factor(self._fit.steps, total)
        start = time.monotonic()
        run, step, examples = trainer.next_run(group, lr)
        self._trained = (self._trained[0] + examples, self._trained[1] + time.monotonic() - start)
        trainer.run = run.with_fit(self._fit.after_step(step, examples, len(group)))
        if self._save_every is not None and self._fit.steps % self._save_every == 0:
            self._save()
        if self._progress is not None:
            self._progress(self._progress_after(step.loss_sum / step.loss_weight, lr))

    def _progress_after(self, loss: float, lr: float) -> Progress:
        fit, (examples, seconds) = self._fit, self._trained
        speed = examples / max(seconds, 1e-9)
        return Progress(fit.steps, self._plan.total_steps, fit.epoch + 1, loss, lr, speed)

    def _close_epoch(self, epoch: int) -> None:
        """Evaluate, note the best, and write the line of the history: all in one change of the run."""
        trainer, fit = self._trainer, self._fit
        loss = fit.loss_sum / fit.loss_weight if fit.loss_weight else None
        evaluation = self._evaluate()
        run = trainer.run if loss is None else replace(trainer.run, loss_after=loss)
        if evaluation is None:
            record = Record(epoch, fit.steps, loss, None, None)
            trainer.run = run.with_fit(fit.after_epoch(record))
        else:
            record = Record(epoch, fit.steps, loss, evaluation.loss, evaluation.accuracy)
            better = self._is_better(evaluation)
            best: Values | None = run.values if better else run.best
            place, worse = (len(fit.history), 0) if better else (fit.best, fit.worse + 1)
            noted = replace(fit.after_epoch(record), best=place, worse=worse)
            trainer.run = replace(run.with_held_out(evaluation).with_fit(noted), best=best)
        self._save()

    def _evaluate(self) -> Evaluation | None:
        """On the held-out data, if there is any; a run that ends here goes on with it."""
        if self._held_out is None:
            return None
        self._wait()
        return self._trainer.evaluate_source(self._held_out)

    def _is_better(self, evaluation: Evaluation) -> bool:
        if not math.isfinite(evaluation.loss):
            return False
        if self._fit.best is None:
            return True
        best = self._fit.history[self._fit.best].held_out_loss
        return best is None or evaluation.loss < best

    def _finish(self, stopped: str) -> None:
        """Restore the best adapter, and mark the call as done."""
        trainer, fit = self._trainer, self._fit
        run = trainer.run.with_fit(replace(fit, stopped=stopped))
        if run.best is not None and fit.best is not None:
            # The optimizer's state stays that of the last step: it is of use only to whoever trains on.
            values = Values(run.best.parameters, run.values.state)
            run = replace(run, values=values, best=None, held_out_after=fit.history[fit.best].held_out_loss)
        trainer.run = run
        self._save()

    def _save(self) -> None:
        if self._trainer.keeps_state:
            self._trainer.save()


def _begin(trainer: Trainer, settings: dict[str, Any]) -> Report | None:
    """Find the call of ``fit`` to go on with, or begin one; its report, if it finished in an earlier process."""
    fits, number = trainer.run.fits, trainer.finished_fits
    if number < trainer.resumed_fits:
        _check_same(fits[number].settings, settings)
        if fits[number].stopped is not None:
            trainer.finished_fits += 1
            return fits[number].report()
        return None
    unfinished = bool(fits) and fits[-1].stopped is None
    if unfinished and fits[-1].settings == settings:
        return None
    # In one process whoever calls with new settings after an interrupt means it: the old call ends here.
    if unfinished:
        fits = (*fits[:-1], replace(fits[-1], stopped="interrupted"))
    trainer.run = replace(trainer.run, fits=(*fits, Fit(settings)), best=None)
    return None


def _check_same(kept: dict[str, Any], given: dict[str, Any]) -> None:
    names = [name for name in given if kept.get(name) != given[name]]
    if names:
        raise StateError(
            "other-settings",
            "The state holds a run with other settings or other data.",
            context="\n".join(f"{name}: this run {given[name]}, the state {kept.get(name)}" for name in names),
            hint="use the settings and data the run was begun with, or begin anew in another state directory.",
        )


def _held_out_source(data: Data, batch_size: int) -> Source:
    if isinstance(data, Iterator):
        raise DataError(
            "data-used-up",
            "A generator gives its batches once; held-out data is evaluated again and again.",
            context=None,
            hint="pass a list of batches, or a function giving them.",
        )
    return source_of(data, batch_size)


def _total_steps(source: Source, epochs: int, accumulate: int, max_steps: int | None) -> int | None:
    if source.count is None:
        return max_steps
    total = epochs * -(-source.count // accumulate)
    return total if max_steps is None else min(total, max_steps)


def positive(name: str, value: Any) -> int:
    """The setting, if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise _bad_setting(f"{name} must be a whole number of at least 1.", f"found {value!r}", None)
    return int(value)


def _bad_setting(message: str, context: str, hint: str | None) -> TrainingError:
    return TrainingError("bad-setting", message, context=context, hint=hint)
