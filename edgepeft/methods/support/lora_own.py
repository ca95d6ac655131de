"""LoRA on layers that ``peft`` cannot adapt: convolutions with groups or dilation, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from edgepeft.methods.base import fits
from edgepeft.methods.support.convolution import attach_convolutions, own_convolutions
from edgepeft.methods.support.recurrent import attach_recurrent, recurrent_modules

_KINDS: tuple[tuple[Callable[[nn.Module], list[str]], Callable[[nn.Module, Sequence[str], int, float], None]], ...] = (
    (own_convolutions, attach_convolutions),
    (recurrent_modules, attach_recurrent),
)
"""For each kind, the function that lists such modules, and the one that adds pairs to named ones, in place."""


def own_targets(model: nn.Module, given: Sequence[str] | None, head: Sequence[str]) -> list[str]:
    """Return the names of targets that peft cannot adapt; without targets, all such modules outside the head."""
    names = [name for find, _ in _KINDS for name in find(model)]
    if given is None:
        return [name for name in names if not f"{name}.".startswith(tuple(f"{part}." for part in head))]
    return [name for name in names if any(fits(name, target) for target in given)]


def attach_own(model: nn.Module, names: Sequence[str], rank: int, alpha: float) -> list[nn.Parameter]:
    """Add pairs to these modules, in place, and return the new parameters."""
    before = {id(parameter) for parameter in model.parameters()}
    for find, attach in _KINDS:
        chosen = [name for name in find(model) if name in names]
        if chosen:
            attach(model, chosen, rank, alpha)
    return [parameter for parameter in model.parameters() if id(parameter) not in before]
