"""Find the coupled channels of convolutional networks, with Torch-Pruning's dependency graph.

The library (Fang et al., CVPR 2023) follows autograd's graph through residuals, concatenations and flattening. It only
finds the coupling; scoring and cutting are the same as for heads and neurons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgepeft.compress.groups import Count, Group, Slices, computing, is_conv, is_matrix, reading
from edgepeft_runtime.errors import MissingExtra

_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def channel_groups(model: nn.Module, example_inputs: Mapping[str, Tensor]) -> Iterator[Group]:
    """Yield the channels of every ordinary convolution, with all coupled slices, each channel in one group.

    Not included are the channels of the model's outputs, of grouped convolutions that are not depthwise, and those
    coupled to layers other than linear ones, convolutions, batch and group norms. If a group norm is among them, a unit
    is one of its groups of channels, so that the statistics of the others do not change.

    Raises:
        PruneError: Torch-Pruning is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtra(
            "Pruning channels needs the package torch-pruning.",
            context=None,
            hint="pip install 'edgepeft[host]'",
        ) from error
    names = {id(module): name for name, module in model.named_modules()}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(True)  # the library reads the graph autograd records
    graph = torch_pruning.DependencyGraph().build_dependency(model, dict(example_inputs))
    for parameter, required in flags:
        parameter.requires_grad_(required)
    seen: set[int] = set()
    for module in list(model.modules()):
        if not is_conv(module) or module.groups > 1 or id(module) in seen:
            continue
        every = list(range(module.out_channels))
        pruned = graph.get_pruning_group(module, torch_pruning.prune_conv_out_channels, idxs=every)
        coupled = [
            (item.dep.target.module, bool(graph.is_out_channel_pruning_fn(item.dep.handler)), item.idxs, item.root_idxs)
            for item in pruned.items
        ]
        seen |= {id(target) for target, out, _, _ in coupled if out}
        group = _group(names, module, coupled)
        if group is not None:
            yield group


def _group(
    names: Mapping[int, str], root: nn.Module, coupled: list[tuple[Any, bool, list[int], list[int]]]
) -> Group | None:
    norms = {id(target): target for target, *_ in coupled if isinstance(target, nn.GroupNorm)}
    units = math.gcd(*(norm.num_groups for norm in norms.values())) if norms else int(root.out_channels)
    slices: dict[tuple[int, bool], list[Slices]] = {}
    for target, out, positions, channels in coupled:
        if not isinstance(target, nn.Module) or id(target) not in names:
            if isinstance(target, nn.Parameter):
                return None
            continue  # an operation of the library's own graph, without tensors
        indices = _by_unit(positions, channels, units, int(root.out_channels))
        parts = None if indices is None else _slices(names[id(target)], target, out, indices)
        if parts is None:
            return None
        depthwise = is_conv(target) and target.groups > 1
        slices[(id(target), out or depthwise)] = parts
    everything = tuple(part for parts in slices.values() for part in parts)
    if not any(part.reads for part in everything):
        return None
    counts = tuple(Count(norm, "num_groups", norm.num_groups // units) for norm in norms.values())
    return Group(names[id(root)], "channels", units, everything, counts)


def _by_unit(positions: list[int], channels: list[int], units: int, total: int) -> Tensor | None:
    """Return positions [units, width], or ``None`` if channels have different numbers of them."""
    order = torch.argsort(torch.tensor(channels), stable=True)
    if len(positions) % total or not torch.equal(
        torch.bincount(torch.tensor(channels)).unique(), torch.tensor([len(positions) // total])
    ):
        return None
    return torch.tensor(positions)[order].reshape(units, -1)


def _slices(name: str, module: nn.Module, out: bool, indices: Tensor) -> list[Slices] | None:
    if is_conv(module) and module.groups > 1:
        depthwise = module.groups == module.out_channels == module.in_channels
        return list(computing(name, module, indices)) if depthwise else None
    if is_conv(module) or is_matrix(module):
        return list(computing(name, module, indices)) if out else [reading(name, module, indices)]
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm):
        tensors = [tensor for tensor in _NORM_TENSORS if getattr(module, tensor, None) is not None]
        return [Slices(name, module, tensor, 0, indices, scored=False) for tensor in tensors]
    return [] if not list(module.parameters()) and not list(module.buffers()) else None
