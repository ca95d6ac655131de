"""Which methods fit a model: each is attached to a copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from edgepeft.methods.registry import METHODS
from edgepeft.methods.support.existing import attach
from edgepeft.sources.working_copy import working_copy
from edgepeft_runtime.errors import EdgepeftError


@dataclass(frozen=True)
class Fit:
    """Whether a method, with its own choice of settings, fits a model.

    Attributes:
        method: its name.
        trainable: number of elements that would train; of SIFT, before elements are picked. ``None``: it does not fit.
        reason: why not, and what would.
    """

    method: str
    trainable: int | None = None
    reason: str | None = None


def survey(model: nn.Module) -> Iterator[Fit]:
    """One line per method, in the registry's order; the model stays as it is."""
    for name, cls in METHODS.items():
        try:
            attached = attach(cls(), working_copy(model))
        except EdgepeftError as error:
            yield Fit(name, reason=" ".join(part for part in (error.message, error.context, error.hint) if part))
        else:
            yield Fit(name, sum(p.numel() for p in attached.parameters() if p.requires_grad))
