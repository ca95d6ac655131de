"""Learning rate schedules are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from edgepeft_runtime.errors import TrainingError
from edgepeft_runtime.train.schedule import schedule_of, warmup_steps

THEIRS: dict[str, Callable[..., Any]] = {
    "constant": lambda optimizer, warmup, _: get_constant_schedule_with_warmup(optimizer, warmup),
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


@pytest.mark.parametrize("total", [1, 2, 7, 50])
@pytest.mark.parametrize("warmup", [0, 1, 5, 60])
@pytest.mark.parametrize("name", THEIRS)
def test_factors_equal_those_of_transformers(name: str, warmup: int, total: int) -> None:
    """The k-th step's factor is LambdaLR's before that step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs, ours = THEIRS[name](optimizer, warmup, total), schedule_of(name, warmup)
    for step in range(total + 3):
        assert ours(step, total) == pytest.approx(theirs.get_last_lr()[0], rel=1e-15, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_warmup_is_steps_or_a_fraction() -> None:
    """An int is steps, a float a fraction of the whole, rounded up as transformers does."""
    assert warmup_steps(3, None) == 3
    assert warmup_steps(0.1, 25) == 3
    assert warmup_steps(0.0, None) == 0


@pytest.mark.parametrize(("warmup", "total"), [(-1, 10), (1.5, 10), (float("nan"), 10), (0.1, None)])
def test_impossible_warmup_is_refused(warmup: float, total: int | None) -> None:
    """Out of range, or a fraction of an unknown whole."""
    with pytest.raises(TrainingError):
        warmup_steps(warmup, total)


def test_unknown_schedule_is_refused_with_the_known_ones() -> None:
    """The hint lists the choices."""
    with pytest.raises(TrainingError) as error:
        schedule_of("cosinus")
    assert "constant, linear, cosine" in str(error.value.hint)
