"""Combine updates one at a time, in memory that does not grow with their number.

Sums are weighted and divided by the sum of weights at the end, so one pass over the updates is enough. A single update
of weight 1 is reproduced bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgepeft.aggregation.incoming import Contribution, Start
from edgepeft.aggregation.pairs import Factors, Float64s, PairTensors
from edgepeft.aggregation.products import ProductSum
from edgepeft.aggregation.report import SparseUnion
from edgepeft.aggregation.sparse import EMPTY, SparseChange, add_sparse, largest
from edgepeft_runtime.bundle.specs import SparseSpec


@dataclass
class Result:
    """The result of all combiners: float64 tensors by name, errors and changes of pairs, and facts for the report."""

    tensors: dict[str, Float64s] = field(default_factory=dict)
    indices: dict[str, np.ndarray] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By layer: the norm of the error, and of the exact change."""
    sparse: dict[str, SparseUnion] = field(default_factory=dict)


EXACT = 0.0, 1.0
"""No error, for any change."""


class Combiner(Protocol):
    """Accumulates contributions, and writes its part of the result."""

    def add(self, item: Contribution) -> None:
        """Add the next contribution."""

    def finish(self, total: float, result: Result) -> None:
        """Write the result; ``total`` is the sum of the weights."""


class Mean:
    """The weighted mean of tensors, which is exact for parameters that enter the model linearly."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self.sums: dict[str, Float64s] = {}

    def add(self, item: Contribution) -> None:
        for name in self._names:
            term = item.update.weight * item.values.whole[name]
            self.sums[name] = self.sums[name] + term if name in self.sums else term

    def finish(self, total: float, result: Result) -> None:
        result.tensors |= {name: array / total for name, array in self.sums.items()}


class PairMean:
    """``fedavg``: A and B, averaged separately.

    That is not the mean of the products. The error is exactly ``Σ pᵢ (Bᵢ - mean B)(Aᵢ - mean A)``, measured here.
    Differences are computed from the common start, so that there is no cancellation.
    """

    def __init__(self, pair: PairTensors, start: Start) -> None:
        self._pair = pair
        self._start = pair.factors(start.adapter)
        self._mean = Mean((pair.a, pair.b))
        self._products = ProductSum()

    def add(self, item: Contribution) -> None:
        self._mean.add(item)
        b, a = _difference(self._pair.factors(item.values.whole), self._start)
        self._products.add(item.update.weight * b, a)

    def finish(self, total: float, result: Result) -> None:
        self._mean.finish(total, result)
        b, a = _difference(self._pair.factors(result.tensors), self._start)
        error = self._products.plus([(-total * b, a)]).norm() / total
        change = self._products.plus(_first_order(self._start, b, a, total)).norm() / total
        result.errors[self._pair.layer] = error, change


def _difference(factors: Factors, start: Factors) -> Factors:
    return factors[0] - start[0], factors[1] - start[1]


def _first_order(start: Factors, b: Float64s, a: Float64s, total: float) -> list[Factors]:
    """Return ``B₀ΔA + ΔB A₀``: with the sum of ``ΔBᵢΔAᵢ`` it is the exact change of the product."""
    return [(total * start[0], a), (total * b, start[1])]


class PairFrozenA:
    """``ffa``: A did not change (other updates are refused), so the mean of B is exact (Sun et al., ICLR 2024)."""

    def __init__(self, pair: PairTensors, start: Start) -> None:
        self._pair = pair
        self._a = start.values.whole[pair.a]
        self._mean = Mean((pair.b,))

    def add(self, item: Contribution) -> None:
        self._mean.add(item)

    def finish(self, total: float, result: Result) -> None:
        self._mean.finish(total, result)
        result.tensors[self._pair.a] = self._a
        result.errors[self._pair.layer] = EXACT


class PairProduct:
    """``svd``: the nearest pair of the bundle's rank to the mean of the products, also for updates of other ranks.

    A has the norm of the start's A and orthogonal rows; B contains the singular values. A row that the mean does not
    need keeps the start's direction, with zeros in B, so that the next round can learn in it.
    """

    def __init__(self, pair: PairTensors, start: Start) -> None:
        self._pair, self._start = pair, start
        self._products = ProductSum()

    def add(self, item: Contribution) -> None:
        b, a = _scaled(self._pair, self._start, item)
        self._products.add(item.update.weight * b, a)

    def finish(self, total: float, result: Result) -> None:
        first_b, first_a = self._pair.factors(self._start.adapter)
        u, s, v = self._products.best(self._pair.rank)
        rows = first_a.shape[0] * first_a.shape[1]
        length = float(np.linalg.norm(first_a) / np.sqrt(rows)) or 1.0  # A of an embedding's pair starts at zero
        kept, missing = s[:, None, : u.shape[2]] / total, self._pair.rank - u.shape[2]
        b = np.pad(u * kept / length, ((0, 0), (0, 0), (0, missing)))
        a = np.concatenate([v * length, first_a[:, self._pair.rank - missing :]], axis=1)
        result.tensors |= self._pair.tensors((b, a))
        change = self._products.plus([(-total * first_b, first_a)]).norm() / total
        result.errors[self._pair.layer] = float(np.linalg.norm(s[:, u.shape[2] :])) / total, change


class PairStack:
    """``stack``: B = [B₁ … B_N], A = [p₁A₁; …; p_N A_N], whose product is the mean of the products (FLoRA; Wang et al.,
    NeurIPS 2024). It grows with the number of updates and fits no bundle, so it is only for merged exports."""

    def __init__(self, pair: PairTensors, start: Start) -> None:
        self._pair, self._start = pair, start
        self._factors: list[Factors] = []

    def add(self, item: Contribution) -> None:
        b, a = _scaled(self._pair, self._start, item)
        self._factors.append((b, item.update.weight * a))

    def finish(self, total: float, result: Result) -> None:
        b, a = zip(*self._factors, strict=True)
        result.tensors |= self._pair.tensors((np.concatenate(b, axis=2), np.concatenate(a, axis=1) / total))
        result.errors[self._pair.layer] = EXACT


def _scaled(pair: PairTensors, start: Start, item: Contribution) -> Factors:
    """Return the factors of a device's pair, with B rescaled to the target's scale."""
    if item.start is start:
        return pair.factors(item.values.whole)
    other = next(candidate for candidate in item.start.pairs if candidate.a == pair.a)
    b, a = other.factors(item.values.whole)
    return b * (other.scale / pair.scale), a


class SparseMean:
    """The mean of sparse changes over the union of their indices. Missing values count as zero.

    A bundle has a fixed number of indices. If devices picked different ones, the largest elements of the mean are kept,
    or with ``whole`` all of them, for a merged export.
    """

    def __init__(self, spec: SparseSpec, count: int, whole: bool) -> None:
        self._spec, self._count, self._whole = spec, count, whole
        self._sum: SparseChange = EMPTY

    def add(self, item: Contribution) -> None:
        self._sum = add_sparse(self._sum, item.values.sparse[self._spec.tensor], item.update.weight)

    def finish(self, total: float, result: Result) -> None:
        put_sparse((self._sum[0], self._sum[1] / total), self._spec, self._count, self._whole, result)


def put_sparse(mean: SparseChange, spec: SparseSpec, count: int, whole: bool, result: Result) -> None:
    """Put a mean over a union of indices into the result, cut to ``count`` indices unless ``whole`` is set."""
    union = mean[0].size
    (indices, values), fraction = (mean, 1.0) if whole else largest(mean, count)
    if union == 0:  # nobody has picked yet
        indices, values = np.full(count, -1, np.int64), np.zeros(count)
    result.tensors[spec.values], result.indices[spec.indices] = values, indices
    result.sparse[spec.tensor] = SparseUnion(int(union), min(int(union), int(indices.size)), fraction)


_PAIR_RULES: Mapping[str, Callable[[PairTensors, Start], Combiner]] = {
    "fedavg": PairMean,
    "ffa": PairFrozenA,
    "svd": PairProduct,
    "stack": PairStack,
}


def combiners_of(start: Start, rule: str) -> list[Combiner]:
    """Return a combiner for each pair, for each sparse tensor, and for all other tensors."""
    manifest = start.bundle.manifest
    shapes: Mapping[str, tuple[int, ...]] = {spec.name: spec.sizes for spec in manifest.parameters}
    in_pairs = {name for pair in start.pairs for name in (pair.a, pair.b)}
    combiners: list[Combiner] = [Mean(name for name in start.values.whole if name not in in_pairs)]
    combiners += [_PAIR_RULES[rule](pair, start) for pair in start.pairs]
    combiners += [SparseMean(spec, shapes[spec.values][0], rule == "stack") for spec in manifest.sparse]
    return combiners
