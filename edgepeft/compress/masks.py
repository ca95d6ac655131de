"""Masks: single weights set to zero, by fraction or n of m, and kept at zero where the weight trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgepeft.compress.groups import input_axis, is_conv, is_matrix
from edgepeft.compress.scores import Scorer
from edgepeft.compress.settings import Pruning


class _Masked(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """``weight * mask``: zeros get no gradient and no value, whatever an optimizer does to the tensor behind.

    The mask is a buffer of uint8, a quarter of the weight in the bundle.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.uint8))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask.to(weight.dtype)


def maskable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers and convolutions, whose weights are matrices and kernels."""
    return ((name, module) for name, module in model.named_modules() if is_matrix(module) or is_conv(module))


def make_mask(module: nn.Module, pruning: Pruning, scorer: Scorer) -> Tensor | None:
    """Which weights stay (bool, of the weight's shape); ``None`` where m does not divide the number of inputs."""
    score, axis = scorer.single(module), input_axis(module)
    if pruning.n_m is not None:
        return _n_of_m(score, axis, *pruning.n_m)
    # Wanda compares the weights of one output among each other, the others those of the whole tensor
    rows = score.transpose(0, axis) if axis == 0 else score
    rows = rows.flatten(1) if pruning.score == "wanda" else rows.reshape(1, -1)
    gone = round(rows.shape[1] * pruning.weights)
    order = rows.argsort(dim=1, stable=True)
    mask = torch.ones_like(rows, dtype=torch.bool).scatter(1, order[:, :gone], False)
    return mask.reshape(score.transpose(0, axis).shape).transpose(0, axis) if axis == 0 else mask.reshape(score.shape)


def _n_of_m(score: Tensor, axis: int, n: int, m: int) -> Tensor | None:
    along = score.movedim(axis, -1)
    if along.shape[-1] % m:
        return None
    runs = along.reshape(-1, m)
    order = runs.argsort(dim=1, stable=True)
    mask = torch.ones_like(runs, dtype=torch.bool).scatter(1, order[:, : m - n], False)
    return mask.reshape(along.shape).movedim(-1, axis)


def keep_masks(model: nn.Module, weights: Iterable[nn.Parameter]) -> list[str]:
    """Keep the zeros of those weights that train at zero through training, in place.

    Call it once a method has decided what trains. Frozen weights stay as they are anyway.

    Args:
        model: with its method attached; weights are found by identity, because a method renames them.
        weights: the masked parameters, as ``[model.get_parameter(name) for name in report.masked]`` gave them.

    Returns:
        The names of the layers whose weight is now ``parametrizations.weight.original`` times a mask;
        :func:`fix_masks` undoes that and leaves plain weights.
    """
    wanted = {id(weight) for weight in weights if weight.requires_grad}
    held = [(name, module) for name, module in maskable(model) if id(module.weight) in wanted]
    for _, module in held:
        # unsafe only skips a trial run: shape and dtype stay the same
        parametrize.register_parametrization(module, "weight", _Masked(module.weight.detach() != 0), unsafe=True)
    return [name for name, _ in held]


def masked_weights(model: nn.Module) -> list[str]:
    """Names of the weights, as they were before, that :func:`keep_masks` keeps at zero."""
    return [f"{name}.weight".lstrip(".") for name, module in model.named_modules() if _is_masked(module)]


def _is_masked(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module, "weight") and isinstance(module.parametrizations.weight[0], _Masked)


def fix_masks(model: nn.Module) -> nn.Module:
    """Put masked weights that trained back in their plain place, zeros and all, in place; undoes :func:`keep_masks`."""
    for module in list(model.modules()):
        if _is_masked(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model
