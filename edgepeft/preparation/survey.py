"""Try which methods fit a model, each on a copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from edgepeft.methods.registry import METHODS
from edgepeft.methods.support.existing import attach
from edgepeft.sources.working_copy import working_copy
from edgepeft_runtime.errors import EdgepeftError


@dataclass(frozen=True)
class MethodFit:
    """Whether a method, with its default settings, fits a model.

    Attributes:
        method: Name of the method.
        trainable: Number of elements that would train; for SIFT, before it picks. ``None`` if the method does not fit.
        reason: Why the method does not fit, and which one would.
    """

    method: str
    trainable: int | None = None
    reason: str | None = None


def survey(model: nn.Module) -> Iterator[MethodFit]:
    """Yield one result per method, in the registry's order. The model does not change."""
    for name, cls in METHODS.items():
        try:
            attached = attach(cls(), working_copy(model))
        except EdgepeftError as error:
            yield MethodFit(name, reason=" ".join(part for part in (error.message, error.context, error.hint) if part))
        else:
            yield MethodFit(name, sum(p.numel() for p in attached.parameters() if p.requires_grad))
