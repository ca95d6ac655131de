"""The settings of ``fit``, written once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from inspect import signature
from typing import Concatenate, ParamSpec, TypeVar

from edgepeft_runtime.checks import positive
from edgepeft_runtime.data.datasets import Data
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.records import Progress

P = ParamSpec("P")
Owner = TypeVar("Owner")
First = TypeVar("First")
Options = TypeVar("Options")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How :meth:`edgepeft_runtime.Trainer.fit` trains.

    Attributes:
        epochs: passes over the data.
        batch_size: examples per batch. Batches that come ready-made keep their size.
        accumulate: batches per optimizer step.
        lr: highest learning rate; ``None`` stands for the bundle's.
        schedule: ``constant``, ``linear`` or ``cosine``.
        warmup: steps over which the learning rate rises from 0 (int), or their fraction of all steps (float).
        shuffle: draw a new order in each epoch. Batches that come ready-made keep their order.
        validate: held-out data, evaluated before training and after each epoch; the best adapter is kept.
        patience: stop after this many epochs without a better held-out loss.
        save_every: optimizer steps between checkpoints in the state directory; ``None`` saves after epochs only.
        max_steps: stop after this many optimizer steps.
        progress: called after each optimizer step.
        pause: called before each optimizer step and each evaluation, for example a
            :class:`~edgepeft_runtime.Limits`. If it returns a :class:`~edgepeft_runtime.Pause`, the run is saved, then
            training sleeps for ``pause.seconds`` or, if that is ``None``, returns. A pause does not change the results.

    Raises:
        SettingError: a setting is out of range.
    """

    epochs: int = 1
    batch_size: int = 8
    accumulate: int = 1
    lr: float | None = None
    schedule: str = "constant"
    warmup: int | float = 0
    shuffle: bool = True
    validate: Data | None = None
    patience: int | None = None
    save_every: int | None = 50
    max_steps: int | None = None
    progress: Callable[[Progress], None] | None = None
    pause: Callable[[], Pause | None] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience", "save_every", "max_steps"):
            value = getattr(self, name)
            if value is not None or name in ("epochs", "batch_size", "accumulate"):
                object.__setattr__(self, name, positive(name, value))
        if self.patience is not None and self.validate is None:
            raise BadSetting("patience", self.patience, "None, or pass held-out data (validate=)")

    def identity(self) -> dict[str, object]:
        """Return the settings that a resumed call must have in common with the first one, as plain JSON values."""
        others = ("validate", "save_every", "progress", "pause")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}


def keywords_of(
    make: Callable[P, Options],
) -> Callable[[Callable[[Owner, First, Options], Result]], Callable[Concatenate[Owner, First, P], Result]]:
    """Let callers of a method pass its last argument as the keywords that make it."""

    def decorate(
        method: Callable[[Owner, First, Options], Result],
    ) -> Callable[Concatenate[Owner, First, P], Result]:
        @wraps(method)
        def call(owner: Owner, first: First, /, *args: P.args, **kwargs: P.kwargs) -> Result:
            return method(owner, first, make(*args, **kwargs))

        own = signature(method)
        known = [*list(own.parameters.values())[:2], *signature(make).parameters.values()]
        call.__signature__ = own.replace(parameters=known)  # type: ignore[attr-defined]  # what help() shows
        return call

    return decorate
