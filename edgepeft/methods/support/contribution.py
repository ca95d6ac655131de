"""The benefit and the cost of training each parameter: sparse update schemes (Lin et al., NeurIPS 2022).

A step of size s along the gradient g of a tensor lowers the loss by about s · ‖g‖², which is measured on proxy data. It
costs four values per element: the trained copy, its gradient and two moments. In addition, all activations between the
tensor and the loss are stored for the backward pass, so deeper tensors cost more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgepeft.errors import MemoryBudgetTooSmall
from edgepeft.methods.errors import NoProxyData

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]

PER_ELEMENT = 16
"""Bytes of an element that trains: value, gradient, and AdamW's two moments, in float32."""


def contributions(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> dict[str, float]:
    """Return the mean squared norm of each parameter's gradient. The model does not change.

    Raises:
        MethodError: There is no batch.
    """
    marked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = model.training
    gains = dict.fromkeys(marked, 0.0)
    count = 0
    try:
        model.eval().requires_grad_(True)
        for batch in batches:
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(loss(model, batch), parameters, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                gains[name] += 0.0 if gradient is None else float(gradient.square().sum())
            count += 1
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(marked[name])
    if not count:
        raise NoProxyData("There is no batch to measure on.", context=None, hint="give at least one batch.")
    return {name: gain / count for name, gain in gains.items()}


def best_under(model: nn.Module, batches: Sequence[Batch], loss: Loss, budget: int) -> list[str]:
    """Return the names of the parameters with the largest total gain that fit.

    For each depth at which the backward pass may end, parameters above it are added by gain per byte until the budget
    is used up. The depth with the largest total is best.

    Raises:
        MethodError: Not even the cheapest parameter fits the budget, or there is no batch.
    """
    gains = contributions(model, batches, loss)
    order, stored = _depths(model, batches[0], loss)
    sizes = {name: PER_ELEMENT * parameter.numel() for name, parameter in model.named_parameters()}
    best: tuple[float, list[str]] = (0.0, [])
    for first in range(len(order)):
        above = [name for name in order[first:] if gains[name] > 0]
        best = max(best, _fill(above, gains, sizes, budget - stored[order[first]]), key=lambda scheme: scheme[0])
    if not best[1]:
        least = min(stored[name] + sizes[name] for name in order)
        raise MemoryBudgetTooSmall(
            f"No parameter can train within {budget / 1e6:.2f} MB.",
            context=f"smallest need of a parameter, with activations: {least / 1e6:.2f} MB",
            hint="allow more, or measure with smaller batches.",
        )
    return best[1]


def _fill(
    names: Sequence[str], gains: Mapping[str, float], sizes: Mapping[str, int], budget: int
) -> tuple[float, list[str]]:
    """Return the names that fit, by gain per byte, and their total gain."""
    chosen, total = [], 0.0
    for name in sorted(names, key=lambda name: -gains[name] / sizes[name]):
        if sizes[name] <= budget:
            budget -= sizes[name]
            total += gains[name]
            chosen.append(name)
    return total, [name for name in names if name in chosen]


def _depths(model: nn.Module, batch: Batch, loss: Loss) -> tuple[list[str], dict[str, int]]:
    """Return the parameters in the order in which their modules run, and the output bytes from there to the loss."""
    owners = {id(p): name for name, p in model.named_parameters()}
    order: list[str] = []
    stored: dict[str, int] = {}

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        size = output.nbytes if isinstance(output, Tensor) else 0
        for name in stored:
            stored[name] += size
        for parameter in module.parameters(recurse=False):
            owner = owners.get(id(parameter))
            if owner is not None and owner not in stored:
                order.append(owner)
                stored[owner] = size

    leaves = [module for module in model.modules() if not list(module.children()) or list(module.parameters(False))]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with torch.no_grad():
            loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return order, stored
