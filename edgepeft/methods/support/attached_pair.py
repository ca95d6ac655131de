"""A low-rank pair of a layer. The model around it determines the names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class AttachedPair:
    """Two parameters of a layer; see ``edgepeft_runtime.bundle.adapter_layout.LowRankPair``.

    Attributes:
        a, b: The parameters.
        rank: Rank in each group.
        scale: Factor of the product.
        groups: Number of groups.
        layout: ``torch`` or ``experts``.
        weight: Name of the adapted weight in its layer, where the layer has several.
    """

    a: nn.Parameter
    b: nn.Parameter
    rank: int
    scale: float
    groups: int = 1
    layout: str = "torch"
    weight: str = ""
