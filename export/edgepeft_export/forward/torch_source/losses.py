"""Computes torch's classification losses by plain operators while a loss is exported.

torch.onnx drops ``label_smoothing``, reads probabilities as indices, and writes ONNX's own loss operators, which have
no gradient rules. Here each is what torch's documentation says it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepeft_export.forward.function_mode import Function, FunctionMode


class PlainLosses(FunctionMode):
    """While active, ``cross_entropy`` and ``nll_loss`` are computed by the functions below."""

    def call(self, function: Function, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> object:
        plain = _PLAIN.get(function)
        if plain is None or kwargs.get("size_average") is not None or kwargs.get("reduce") is not None or len(args) > 3:
            return function(*args, **kwargs)
        settings = {name: value for name, value in kwargs.items() if name not in ("size_average", "reduce")}
        return plain(*args, **settings)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``torch.nn.functional.cross_entropy``, of indices or of probabilities."""
    axis = _class_axis(input)
    log_p = torch.log_softmax(input, axis)
    weighted = log_p if weight is None else log_p * _along(weight, input, axis)
    if target.is_floating_point():
        if label_smoothing:
            target = target * (1 - label_smoothing) + label_smoothing / input.shape[axis]
        each = -(weighted * target).sum(axis)
        return _reduced(each, torch.ones_like(each), reduction)
    each, counted = _picked(weighted, target, weight, ignore_index)
    if label_smoothing:
        spread = -weighted.sum(axis) * (target != ignore_index).to(input.dtype)
        each = each * (1 - label_smoothing) + spread * (label_smoothing / input.shape[axis])
    return _reduced(each, counted, reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``torch.nn.functional.nll_loss``."""
    weighted = input if weight is None else input * _along(weight, input, _class_axis(input))
    return _reduced(*_picked(weighted, target, weight, ignore_index), reduction)


def _picked(log_p: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The loss of each label, 0 for ignored ones, and the weight of each in a mean."""
    axis = _class_axis(log_p)
    counts = target != ignore_index
    safe = torch.where(counts, target, torch.zeros_like(target))
    counted = counts.to(log_p.dtype)
    each = -log_p.gather(axis, safe.unsqueeze(axis)).squeeze(axis) * counted
    return each, counted if weight is None else counted * weight[safe]


def _reduced(each: Tensor, counted: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return each
    return each.sum() / counted.sum() if reduction == "mean" else each.sum()


def _class_axis(scores: Tensor) -> int:
    return 1 if scores.dim() > 1 else 0


def _along(weight: Tensor, like: Tensor, axis: int) -> Tensor:
    return weight.reshape([-1 if at == axis else 1 for at in range(like.dim())])


_PLAIN: dict[Function, Callable[..., Tensor]] = {F.cross_entropy: cross_entropy, F.nll_loss: nll_loss}
