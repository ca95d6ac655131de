"""The training loop: epochs, accumulation, schedule, held-out data, early stopping, checkpoints, resuming."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.data.sources import Data, Source, source_of
from edgepeft_runtime.engine.evaluate import Evaluation
from edgepeft_runtime.errors import DataUsedUp, NoData
from edgepeft_runtime.train.callbacks import Callbacks
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.options import FitOptions
from edgepeft_runtime.train.records import FitReport, Progress, StepPart
from edgepeft_runtime.train.run import FitState
from edgepeft_runtime.train.schedule import schedule_of, unknown_total, warmup_steps
from edgepeft_runtime.train.session import Session

_LOG = logging.getLogger(__name__)

EVERY_SECOND = 1.0
"""Seconds between two calls of ``pause``, and of ``on_part``, within a step of several graphs."""

LONG_STEP = 2.0
"""Seconds after which ``on_part`` is called within a step."""


def fit(session: Session, data: Data, options: FitOptions) -> FitReport:
    """Train for some epochs, or resume: see ``edgepeft_runtime.Trainer.fit``."""
    manifest, size = session.bundle.manifest, options.batch_size
    source = source_of(data, manifest, size, shuffle_seed=session.run.seed if options.shuffle else None)
    held_out = None if options.validate is None else _held_out_source(options.validate, manifest, size)
    total = _total_steps(source, options)
    if total is None and options.schedule != "constant":
        raise unknown_total(f"the schedule {options.schedule!r}")
    lr = session.bundle.manifest.optimizer.lr if options.lr is None else options.lr
    resolved = replace(options, lr=float(lr), warmup=warmup_steps(options.warmup, total))
    return _Loop(session, resolved, float(lr), source, held_out, total).run()


class _Stopped(Exception):
    """A pause that ends the call."""

    def __init__(self, pause: Pause) -> None:
        super().__init__(pause.detail)
        self.reason = pause.reason


class _Loop:
    """One call of ``fit``. All that it knows of the past is in ``session.run``, so it can start anywhere."""

    def __init__(
        self,
        session: Session,
        options: FitOptions,
        lr: float,
        source: Source,
        held_out: Source | None,
        total: int | None,
    ) -> None:
        self._session = session
        self._options = options
        self._lr = lr
        self._source = source
        self._held_out = held_out
        self._total = total
        self._factor = schedule_of(options.schedule, int(options.warmup))
        self._speed = (0, 0.0)  # examples and seconds of the steps taken here
        self._asked = 0.0  # when ``pause`` was called last
        self._began: float | None = None  # when the current step did
        self._reported = 0.0  # when the callbacks were called within a step last
        self._callbacks = Callbacks(options.callbacks)
        self._stopped = False  # by a callback

    @property
    def _fit(self) -> FitState:
        return self._session.run.fits[-1]

    def _identity(self) -> dict[str, object]:
        """Return the settings that must be equal when this call is resumed; the checkpoint records them."""
        return {
            **self._options.identity(),
            "total_steps": self._total,
            "training_examples": self._source.examples,
            "training_data": self._source.fingerprint,
            "held_out_examples": None if self._held_out is None else self._held_out.examples,
            "held_out_data": None if self._held_out is None else self._held_out.fingerprint,
        }

    def run(self) -> FitReport:
        """Start or resume, and train to the end."""
        self._session.engine.watch(self._between_calls)
        try:
            with self._session.keeping(self._options):
                return self._run()
        finally:
            self._session.engine.watch(None)

    def _run(self) -> FitReport:
        finished = self._session.start_fit(self._identity())
        if finished is not None:
            return finished
        self._callbacks.on_start(self._total, self._fit.steps)
        report = self._trained()
        self._callbacks.on_end(report)
        return report

    def _trained(self) -> FitReport:
        try:
            if self._held_out is not None and not self._fit.history:
                self._close_epoch(epoch=0)
            self._pick()
            while (stopped := self._reason_to_stop()) is None:
                self._epoch()
            self._session.run = self._session.run.after_fit(stopped)
            self._save()
        except KeyboardInterrupt:
            self._session.save()
            raise
        except _Stopped as pause:  # the next call with these settings resumes this one
            return replace(self._fit.report(), stopped=pause.reason, finished=False)
        return self._session.end_fit(self._fit)

    def _pick(self) -> None:
        """Let the first batches decide which elements train, unless the data can be read only once."""
        if self._session.must_pick and not self._source.once:
            count = max(spec.batches for spec in self._session.bundle.manifest.sparse)
            self._session.pick(islice(self._source.batches(0), count))

    def _reason_to_stop(self) -> str | None:
        """Return why there is no further epoch. An epoch that was cut short is closed first, like a whole one."""
        fit, options = self._fit, self._options
        if fit.batches > 0:
            return None
        if options.patience is not None and fit.epochs_since_best >= options.patience:
            return "patience"
        if self._at_max_steps():
            return "max_steps"
        if self._stopped:
            return "callback"
        return "epochs" if fit.epoch >= options.epochs else None

    def _at_max_steps(self) -> bool:
        return self._options.max_steps is not None and self._fit.steps >= self._options.max_steps

    def _epoch(self) -> None:
        batches = self._source.batches(self._fit.epoch, skip=self._fit.batches)
        while not (self._stopped or self._at_max_steps()) and (
            group := list(islice(batches, self._options.accumulate))
        ):
            self._pause()
            self._step(group)
        if self._fit.batches == 0:
            raise NoData(
                "The data has no batches.",
                context=f"epoch {self._fit.epoch + 1}",
                hint="a generator can be read only once: pass a list, or a function from the epoch to its batches.",
            )
        self._close_epoch(self._fit.epoch + 1)

    def _between_calls(self, done: int, calls: int) -> None:
        """Pause also within a long step, which starts again when the run is resumed. States never change in place."""
        now = time.monotonic()
        if now - self._asked >= EVERY_SECOND:
            self._pause()
        if self._began is None or now - self._began < LONG_STEP:
            return
        if now - self._reported >= EVERY_SECOND:
            self._reported = now
            self._callbacks.on_part(StepPart(self._fit.steps + 1, done, calls, now - self._began))

    def _pause(self) -> None:
        """Save and sleep for as long as ``pause`` requests it, or end the call if it requests that."""
        saved = False
        self._asked = time.monotonic()
        while self._options.pause is not None and (pause := self._options.pause()) is not None:
            if not saved:  # before anything else: a device that is hot or busy may be switched off
                saved = True
                self._save()
            if pause.seconds is None:
                raise _Stopped(pause)
            time.sleep(pause.seconds)

    def _step(self, group: list[Batch]) -> None:
        lr = self._lr * self._factor(self._fit.steps, self._total or 0)
        start = self._began = time.monotonic()
        run, step, examples = self._session.next_run(group, lr)
        self._speed, self._began = (self._speed[0] + examples, self._speed[1] + time.monotonic() - start), None
        self._session.run = run.with_fit(self._fit.after_step(step, examples, len(group)))
        save_every = self._options.save_every
        if save_every is not None and self._fit.steps % save_every == 0:
            self._save()
        if self._callbacks:
            self._stopped |= self._callbacks.on_step(self._progress(step.loss_sum / step.loss_weight, lr))

    def _save(self) -> None:
        """Write a checkpoint, if there is a state directory."""
        folder = self._session.save()
        if folder is not None:
            self._callbacks.on_save(folder)

    def _progress(self, loss: float, lr: float) -> Progress:
        examples, seconds = self._speed
        return Progress(self._fit.steps, self._total, self._fit.epoch + 1, loss, lr, examples / max(seconds, 1e-9))

    def _close_epoch(self, epoch: int) -> None:
        """Evaluate, then add the record and keep the best parameters in one change of the run."""
        evaluation = self._evaluate()
        self._session.run = self._session.run.after_epoch(epoch, evaluation)
        _LOG.debug("epoch %d: %s", epoch, self._fit.history[-1])
        self._save()
        self._stopped |= self._callbacks.on_epoch(self._fit.history[-1])

    def _evaluate(self) -> Evaluation | None:
        """Evaluate on the held-out data, if there is any. A run that a pause ends here resumes with this evaluation."""
        if self._held_out is None:
            return None
        self._pause()
        metric = self._options.metric
        return self._session.evaluate(self._held_out, () if metric is None else (metric,))


def _held_out_source(data: Data, manifest: Manifest, batch_size: int) -> Source:
    if isinstance(data, Iterator):
        raise DataUsedUp(
            "A generator can be read only once, but held-out data is evaluated after each epoch.",
            context=None,
            hint="pass a list of batches, or a function that returns them.",
        )
    return source_of(data, manifest, batch_size)


def _total_steps(source: Source, options: FitOptions) -> int | None:
    if source.count is None:
        return options.max_steps
    total = options.epochs * -(-source.count // options.accumulate)
    return total if options.max_steps is None else min(total, options.max_steps)
