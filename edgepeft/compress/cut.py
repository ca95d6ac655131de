"""Cut units from groups, and shrink every tensor of which a group owns a part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgepeft.compress.groups import Group, Slices, input_axis, is_conv, is_conv1d


def cut(plans: Sequence[tuple[Group, Tensor]]) -> None:
    """Keep these units (int64) of each group, in place.

    All groups are cut at once, because several groups may own parts of one axis of a concatenation, and their indices
    refer to the tensors before any cut.
    """
    stays: dict[tuple[int, str, int], tuple[Slices, Tensor]] = {}
    for group, keep in plans:
        for part in group.slices:
            _mark(part, keep, stays)
    for part, mask in stays.values():
        _cut_tensor(part, mask)
    for part, _ in stays.values():
        _refresh(part.module)
    for group, keep in plans:
        for count in group.counts:
            setattr(count.module, count.attribute, count.per_unit * len(keep))


def _mark(part: Slices, keep: Tensor, stays: dict[tuple[int, str, int], tuple[Slices, Tensor]]) -> None:
    """Mark the removed indices. Indices that no unit owns stay, and the order does not change."""
    everything = torch.ones(part.value().shape[part.axis], dtype=torch.bool)
    _, mask = stays.setdefault((id(part.module), part.tensor, part.axis), (part, everything))
    gone = torch.ones(len(part.indices), dtype=torch.bool)
    gone[keep] = False
    mask[part.indices[gone].flatten()] = False


def _cut_tensor(part: Slices, mask: Tensor) -> None:
    old = part.value()
    new = old.detach().index_select(part.axis, mask.nonzero().flatten().to(old.device)).clone()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(part.module, part.tensor, new)


def _refresh(module: nn.Module) -> None:
    """Update a layer's size attributes from its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif is_conv1d(module):
        module.nx, module.nf = module.weight.shape
    elif is_conv(module):
        if module.groups > 1:  # only depthwise ones are cut
            module.groups = int(module.weight.shape[0])
        module.out_channels = int(module.weight.shape[0])
        module.in_channels = int(module.weight.shape[input_axis(module)]) * module.groups
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = int(module.weight.shape[0])
    elif hasattr(module, "num_features"):
        module.num_features = next(int(t.shape[0]) for t in (module.weight, module.running_mean) if t is not None)
