"""Learning rate schedules: the factor of the learning rate for each optimizer step, as in transformers."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgepeft_runtime.errors import BadWarmup, TrainingError, UnknownNumberOfSteps, UnknownSchedule

Schedule = Callable[[int, int], float]
"""From (step, counted from 0; all steps) to the factor of the learning rate."""

NAMES = ("constant", "linear", "cosine")


def schedule_of(name: str, warmup: int = 0) -> Schedule:
    """Return a schedule that first rises from 0 over ``warmup`` steps.

    Args:
        name: ``constant``, ``linear`` (falls to 0 at the last step) or ``cosine`` (to 0 along half a wave).
        warmup: steps of the rise; the factor of step k is k / warmup.

    Returns:
        The values of transformers' ``get_<name>_schedule_with_warmup``.
    """
    if name not in NAMES:
        raise UnknownSchedule(
            f"There is no learning rate schedule {name!r}.",
            context=None,
            hint=f"use one of {', '.join(NAMES)}.",
        )
    after = {"constant": _constant, "linear": _linear, "cosine": _cosine}[name]

    def factor(step: int, total: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        return after(step, warmup, total)

    return factor


def warmup_steps(warmup: int | float, total: int | None) -> int:
    """Return warm-up steps: an ``int`` is one already, a ``float`` is a fraction of ``total``, rounded up."""
    fraction = isinstance(warmup, float)
    if warmup < 0 or (fraction and not warmup <= 1.0):
        raise BadWarmup(
            "The warm-up is out of range.",
            context=f"warmup: {warmup!r}",
            hint="pass a number of steps (int, 0 or more) or a fraction of all steps (float, 0.0 to 1.0).",
        )
    if not fraction:
        return int(warmup)
    if total is None:
        if warmup == 0.0:
            return 0
        raise unknown_total("a warm-up given as a fraction")
    return math.ceil(total * warmup)


def unknown_total(what: str) -> TrainingError:
    """The error of a setting that needs the number of steps, which the data does not have."""
    return UnknownNumberOfSteps(
        f"The number of batches is unknown, but {what} depends on it.",
        context=None,
        hint="pass max_steps, or data that has a length.",
    )


def _constant(_step: int, _warmup: int, _total: int) -> float:
    return 1.0


def _linear(step: int, warmup: int, total: int) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, warmup: int, total: int) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))
