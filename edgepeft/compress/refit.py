"""Refit the layers that read removed units, so that their outputs stay close to the earlier ones.

Least squares on calibration data, as in He et al. (ICCV 2017) for channels and Kwon et al. (NeurIPS 2022) for heads and
neurons: with H = Xᵀ X of a layer's inputs, the weights of the inputs that stay (K) take over the contribution of
those that are removed (R), ``W_K += W_R H_RK (H_KK + λ I)⁻¹``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgepeft.compress.groups import Group, Slices, input_axis, is_matrix
from edgepeft.compress.scores import run_observed

RIDGE = 0.01
"""λ as a fraction of the mean of H's diagonal: with few data, weights stay close to the original ones."""


def refit(model: nn.Module, plans: Sequence[tuple[Group, Tensor]], batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Fit the linear layers that read the groups' units to those that stay, in place, before anything is cut.

    Args:
        model: A model in evaluation mode.
        plans: Groups, each with the units (int64) that stay.
        batches: Arguments of ``forward`` by name.
    """
    readers = list(_readers(plans))
    products = _input_products(model, [part.module for part, _ in readers], batches)
    for part, stays in readers:
        _fit(part.module, products[id(part.module)], stays)


def _readers(plans: Sequence[tuple[Group, Tensor]]) -> Iterator[tuple[Slices, Tensor]]:
    """Yield the linear layers whose inputs all belong to one group, each with a mask of the inputs that stay."""
    for group, keep in plans:
        for part in group.slices:
            inputs = part.value().shape[part.axis] if part.reads and is_matrix(part.module) else 0
            if inputs and part.indices.numel() == inputs and len(keep) < group.units:
                mask = torch.zeros(inputs, dtype=torch.bool)
                mask[part.indices[keep].flatten()] = True
                yield part, mask


def _input_products(
    model: nn.Module, layers: Sequence[nn.Module], batches: Sequence[Mapping[str, Tensor]]
) -> dict[int, Tensor]:
    """Return Xᵀ X over all batches, float64 [inputs, inputs], by the identity of the layer."""
    sums: dict[int, Tensor] = {}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().flatten(0, -2).double()
        sums[id(module)] = sums.get(id(module), torch.zeros(())) + x.T @ x

    run_observed(model, layers, batches, observe)
    return sums


def _fit(layer: nn.Module, h: Tensor, stays: Tensor) -> None:
    transposed = input_axis(layer) == 0
    weight = (layer.weight.T if transposed else layer.weight).detach().double()
    ridge = RIDGE * h.diagonal().mean() * torch.eye(int(stays.sum()), dtype=h.dtype)
    solved = torch.linalg.solve(h[stays][:, stays] + ridge, h[stays][:, ~stays])  # [stay, go]
    weight[:, stays] += weight[:, ~stays] @ solved.T
    with torch.no_grad():
        layer.weight.copy_(weight.T if transposed else weight)
