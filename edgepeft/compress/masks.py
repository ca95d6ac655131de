"""Masks: single weights set to zero, by fraction or n of m, which stay zero if the weight trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgepeft.compress.groups import input_axis, is_conv, is_matrix
from edgepeft.compress.scores import Scorer
from edgepeft.compress.settings import Pruning


class _Masked(nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """``weight * mask``: zeros get no gradient and stay zero, whatever an optimizer does to the weight.

    The mask is a buffer of uint8, a quarter of the weight in the bundle.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.uint8))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask.to(weight.dtype)


def maskable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers and convolutions, whose weights are matrices and kernels."""
    return ((name, module) for name, module in model.named_modules() if is_matrix(module) or is_conv(module))


def make_mask(module: nn.Module, pruning: Pruning, scorer: Scorer) -> Tensor | None:
    """Return the weights that stay (bool, of the weight's shape); ``None`` if m does not divide the inputs."""
    score, axis = scorer.single(module), input_axis(module)
    if pruning.n_m is not None:
        return _n_of_m(score, axis, *pruning.n_m)
    # Wanda compares the weights of each output; the other scores compare those of the whole tensor
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
    """Keep the zeros of trained weights at zero during training, in place.

    Call it after a method is attached. Frozen weights do not change anyway.

    Args:
        model: The model, with its method attached. Weights are found by identity, because a method renames them.
        weights: The masked parameters: ``[model.get_parameter(name) for name in report.masked]``.

    Returns:
        The names of the layers whose weight is now ``parametrizations.weight.original`` times a mask;
        ``fix_masks`` undoes that and leaves plain weights.
    """
    wanted = {id(weight) for weight in weights if weight.requires_grad}
    masked = [(name, module) for name, module in maskable(model) if id(module.weight) in wanted]
    for _, module in masked:
        # unsafe only skips a trial run: shape and dtype stay the same
        parametrize.register_parametrization(module, "weight", _Masked(module.weight.detach() != 0), unsafe=True)
    return [name for name, _ in masked]


def masked_weights(model: nn.Module) -> list[str]:
    """Return the original names of the weights that ``keep_masks`` keeps at zero."""
    return [f"{name}.weight".lstrip(".") for name, module in model.named_modules() if _is_masked(module)]


def _is_masked(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module, "weight") and isinstance(module.parametrizations.weight[0], _Masked)


def fix_masks(model: nn.Module) -> nn.Module:
    """Replace parametrized masked weights by plain ones with their zeros, in place. Undoes ``keep_masks``."""
    for module in list(model.modules()):
        if _is_masked(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model
