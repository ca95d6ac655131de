"""The matrices of a low-rank pair, in one layout for all kinds of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.adapter_layout import LowRankPair
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.tensorfile import Array

Float64s = NDArray[np.float64]
Factors = tuple[Float64s, Float64s]
"""B [groups, out, rank] and A [groups, rank, in]: their product, by groups, is the change of the weight, unscaled."""


@dataclass(frozen=True)
class PairTensors(LowRankPair):
    """A pair as the manifest declares it, and the shapes of its parameters there."""

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]

    def rank_of(self, tensors: Mapping[str, Array]) -> int:
        """Return the rank that these tensors have in each group."""
        return int(tensors[self.a].shape[self.rank_axis]) // self.groups

    def factors(self, tensors: Mapping[str, Array]) -> Factors:
        """Return the pair's matrices, float64."""
        a, b = (tensors[name].astype(np.float64) for name in (self.a, self.b))
        if self.layout == "graph":
            return b.T[None], a.T[None]
        rank, groups = self.rank_of(tensors), self.groups
        rows = a.reshape(groups, rank, -1)
        if self.layout == "experts":
            return b.reshape(-1, rank, groups).transpose(2, 0, 1), rows
        return b.reshape(groups, -1, rank), rows

    def tensors(self, factors: Factors) -> dict[str, Float64s]:
        """Return the parameters of matrices of any rank: the inverse of ``factors``."""
        b, a = factors
        if self.layout == "graph":
            return {self.a: a[0].T, self.b: b[0].T}
        if self.layout == "experts":
            b = b.transpose(1, 2, 0)
        shapes = self.shapes(a.shape[1])
        return {self.a: a.reshape(shapes[self.a]), self.b: b.reshape(shapes[self.b])}

    def shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        """Return the parameters' shapes at another rank."""
        a, b = self.a_shape, self.b_shape
        if self.layout == "graph":
            return {self.a: (a[0], rank), self.b: (rank, b[1])}
        rows = self.groups * rank
        columns = rows if self.layout == "experts" else rank
        return {self.a: (rows, *a[1:]), self.b: (b[0], columns, *b[2:])}


def pairs_of(manifest: Manifest) -> tuple[PairTensors, ...]:
    """Return the pairs that a bundle declares."""
    sizes = {spec.name: spec.sizes for spec in manifest.parameters}
    return tuple(
        PairTensors(**vars(pair), a_shape=sizes[pair.a], b_shape=sizes[pair.b]) for pair in manifest.adapter.pairs
    )
