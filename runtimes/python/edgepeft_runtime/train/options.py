"""The settings of ``fit``, written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from inspect import signature
from typing import Concatenate, ParamSpec, TypeVar

from edgepeft_runtime.data.sources import Data
from edgepeft_runtime.engine.registry import CACHES, NO_CACHE
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.metrics.registry import MetricLike, metric_of, name_of
from edgepeft_runtime.settings import Settings, setting
from edgepeft_runtime.train.callbacks import CallbackLike
from edgepeft_runtime.train.limits import Pause
from edgepeft_runtime.train.schedule import NAMES

P = ParamSpec("P")
Owner = TypeVar("Owner")
First = TypeVar("First")
Options = TypeVar("Options")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class FitOptions(Settings):
    """How ``edgepeft_runtime.Trainer.fit`` trains.

    Attributes:
        shuffle: draw a new order in each epoch. Batches that come ready-made keep their order.
        validate: held-out data, evaluated before training and after each epoch; the best adapter is kept.
        metric: by which the best adapter is chosen instead of the held-out loss: a name, such as ``f1``, or a function
            (see ``edgepeft_runtime.Trainer.evaluate``).
        cache: ``activations`` keeps, for each example, the value below which nothing trains, in float16 in the state
            directory. Later epochs run only what comes after it. It needs a bundle whose manifest names such a value.
        callbacks: called after steps and epochs, and when the run is saved; each is a
            ``Callback``, or a function that is called with the progress after each step.
        pause: called before each optimizer step and each evaluation, and within a long one, for example a
            ``Limits``. If it returns a ``Pause``, the run is saved, then
            training sleeps for ``pause.seconds`` or, if that is ``None``, returns. A pause does not change the results.

    Raises:
        SettingError: a setting is out of range.
    """

    epochs: int = setting(1, "Passes over the data.", minimum=1)
    batch_size: int = setting(8, "Examples per batch. Batches that come ready-made keep their size.", minimum=1)
    accumulate: int = setting(1, "Batches per optimizer step.", minimum=1)
    lr: float | None = setting(None, "Highest learning rate; by default the bundle's.", minimum=0)
    schedule: str = setting("constant", "Course of the learning rate.", choices=NAMES)
    warmup: int | float = setting(0, "Steps over which the learning rate rises from 0, or their fraction.", minimum=0)
    shuffle: bool = True
    validate: Data | None = None
    metric: MetricLike | None = None
    patience: int | None = setting(None, "Stop after this many epochs without a better held-out result.", minimum=1)
    save_every: int | None = setting(50, "Steps between checkpoints; None saves after epochs only.", minimum=1)
    max_steps: int | None = setting(None, "Stop after this many optimizer steps.", minimum=1)
    cache: str = setting("none", "What to keep for later epochs: the activations of what is frozen.", choices=CACHES)
    cache_bytes: int = setting(2**31, "Largest size of the cache in bytes.", minimum=0)
    callbacks: Sequence[CallbackLike] = ()
    pause: Callable[[], Pause | None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and self.validate is None:
            raise BadSetting("patience", self.patience, "None, or pass held-out data (validate=, --validate)")
        if self.metric is not None:
            metric_of(self.metric)
            if self.validate is None:
                raise BadSetting("metric", name_of(self.metric), "None, or pass held-out data (validate=, --validate)")

    def identity(self) -> dict[str, object]:
        """Return the settings that a resumed call must have in common with the first one, as plain JSON values."""
        others = {"validate", "save_every", "cache_bytes", "callbacks", "pause"}
        if self.cache == NO_CACHE:  # also the runs of runtimes that have no cache
            others.add("cache")
        if self.metric is None:
            others.add("metric")
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}
        return values if self.metric is None else values | {"metric": name_of(self.metric)}


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
