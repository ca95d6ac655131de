"""The run so far as frozen values: replaced as a whole after each step, so an interrupt never finds it half changed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from edgepeft_runtime.engine.engine import Step, Values
from edgepeft_runtime.errors import StateError
from edgepeft_runtime.files import strict_json
from edgepeft_runtime.files.fields import Fields
from edgepeft_runtime.train.records import Evaluation, Record, Report


@dataclass(frozen=True)
class Fit:
    """One call of ``fit``: its settings and how far it is.

    Args:
        settings: what must be the same when it is resumed; plain JSON.
        steps: optimizer steps taken.
        examples: examples trained on.
        epoch: epochs done.
        place: batches used of the epoch under way.
        loss_sum: Σ loss of the epoch under way, and ``loss_weight`` its Σ weight.
        worse: epochs since the best held-out loss.
        best: the place of the best in ``history``.
        stopped: why it ended; ``None`` while it goes on.
        history: one record per epoch, and one before training where there is held-out data.
    """

    settings: dict[str, Any]
    steps: int = 0
    examples: int = 0
    epoch: int = 0
    place: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    worse: int = 0
    best: int | None = None
    stopped: str | None = None
    history: tuple[Record, ...] = ()

    def after_step(self, step: Step, examples: int, batches: int) -> Fit:
        """One optimizer step further."""
        return replace(
            self,
            steps=self.steps + 1,
            examples=self.examples + examples,
            place=self.place + batches,
            loss_sum=self.loss_sum + step.loss_sum,
            loss_weight=self.loss_weight + step.loss_weight,
        )

    def after_epoch(self, record: Record) -> Fit:
        """At the start of the next epoch, with a line more in the history."""
        history = (*self.history, record)
        return replace(self, epoch=record.epoch, place=0, loss_sum=0.0, loss_weight=0.0, history=history)

    def report(self) -> Report:
        """What the call did, as its caller sees it."""
        best = None if self.best is None else self.history[self.best]
        return Report(self.steps, self.examples, self.stopped or "", self.history, best)


@dataclass(frozen=True)
class Run:
    """Everything a run consists of.

    Args:
        values: parameters and optimizer state.
        seed: of the shuffling.
        best: the parameters with the best held-out loss of the fit under way.
        step: optimizer steps taken.
        examples: examples trained on, repeats counted.
        loss_before: training loss of the first step, and ``loss_after`` of the last step or, after an epoch, its mean.
        held_out_before: first held-out loss, and ``held_out_after`` that of the adapter as it stands, if known.
        fits: the calls of ``fit``, in order.
    """

    values: Values
    seed: int
    best: Values | None = None
    step: int = 0
    examples: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    held_out_before: float | None = None
    held_out_after: float | None = None
    fits: tuple[Fit, ...] = ()

    def after_step(self, step: Step, examples: int) -> Run:
        """One optimizer step further."""
        loss = step.loss_sum / step.loss_weight
        before = loss if self.loss_before is None else self.loss_before
        return replace(
            self,
            values=step.values,
            step=self.step + 1,
            examples=self.examples + examples,
            loss_before=before,
            loss_after=loss,
            held_out_after=None,
        )

    def with_held_out(self, evaluation: Evaluation) -> Run:
        """With a held-out loss for the adapter as it stands."""
        before = evaluation.loss if self.held_out_before is None else self.held_out_before
        return replace(self, held_out_before=before, held_out_after=evaluation.loss)

    def with_fit(self, fit: Fit) -> Run:
        """With the last call of ``fit`` where it is now."""
        return replace(self, fits=(*self.fits[:-1], fit))

    @property
    def history(self) -> tuple[Record, ...]:
        """The records of all calls of ``fit``."""
        return tuple(record for fit in self.fits for record in fit.history)

    def to_json(self) -> str:
        """Everything but the tensors, as JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("values", "best", "fits")}
        return json.dumps(_written({**plain, "fits": [asdict(fit) for fit in self.fits]}), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, values: Values, best: Values | None) -> Run:
        """Read the run that :meth:`to_json` wrote; raises :class:`StateError` for any other text."""
        try:
            fields = Fields(strict_json.loads(text), "run", _unknown)
        except ValueError as failure:
            raise _unknown("The run is not JSON.", str(failure)) from None
        run = cls(
            values=values,
            best=best,
            seed=fields.natural("seed"),
            step=fields.natural("step"),
            examples=fields.natural("examples"),
            **{name: fields.number_or_null(name) for name in _LOSSES},
            fits=tuple(_fit(part) for part in fields.list_of("fits")),
        )
        fields.finish()
        return run


_LOSSES = ("loss_before", "loss_after", "held_out_before", "held_out_after")


def _written(value: Any) -> Any:
    """Plain values as JSON has them: a held-out loss that is not finite becomes a text, which is read back."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _written(item) for name, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, list | tuple) else value


def _unknown(message: str, context: str) -> StateError:
    hint = "resume it with the edgepeft that wrote it, or use another directory."
    return StateError("unknown-checkpoint", message, context=context, hint=hint)


def _fit(fields: Fields) -> Fit:
    fit = Fit(
        settings=fields.take("settings", dict),
        **{name: fields.natural(name) for name in ("steps", "examples", "epoch", "place", "worse")},
        loss_sum=fields.number("loss_sum"),
        loss_weight=fields.number("loss_weight"),
        best=fields.take("best", int, None),
        stopped=fields.take("stopped", str, None),
        history=tuple(_record(part) for part in fields.list_of("history")),
    )
    if fit.best is not None and not 0 <= fit.best < len(fit.history):
        raise fields.wrong("best", "a place in the history", fit.best)
    return fit


def _record(fields: Fields) -> Record:
    losses = [fields.number_or_null(name) for name in ("loss", "held_out_loss", "held_out_accuracy")]
    return Record(fields.natural("epoch"), fields.natural("step"), *losses)
