"""The report of an aggregation, as plain values and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from edgepeft.intake.refusal import Refusal
from edgepeft_runtime.files.durable import write_atomically

FORMAT = "edgepeft-aggregate"


@dataclass(frozen=True)
class CountedUpdate:
    """An update that counted.

    Attributes:
        sha256: Hash of its file.
        weight: Its weight, before the division by the sum of weights.
        norm: L2 norm of its change since the start, over all tensors, before clipping.
        clipped: Factor that clipping applied to its change; 1 without clipping.
        num_examples, steps, loss_before, loss_after: Claims of the device.
    """

    sha256: str
    weight: float
    norm: float
    clipped: float
    num_examples: int
    steps: int
    loss_before: float | None
    loss_after: float | None


@dataclass(frozen=True)
class ProductError:
    """The distance of the adapter's products of pairs from the mean of the devices' products.

    Both are differences in the weights that the pairs change, as Frobenius norms divided by that of the round's exact
    change: 0.01 means that 1 % of what the fleet has learned was lost (or added).

    Attributes:
        relative: The error of all pairs together, with the scales of the model.
        pairs: The error of each pair, by the name of its layer.
    """

    relative: float
    pairs: dict[str, float]


@dataclass(frozen=True)
class SparseUnion:
    """A tensor with sparse changes.

    Attributes:
        indices: Number of elements that any device changed.
        kept: Number of those that the adapter contains.
        fraction: Fraction of the mean's squared norm that these make up.
    """

    indices: int
    kept: int
    fraction: float


@dataclass(frozen=True)
class Spent:
    """The privacy spent.

    Attributes:
        epsilon, delta: The guarantee over ``rounds``.
        noise: Noise multiplier.
        deviation: Standard deviation of the noise on a coordinate.
        rounds: Number of rounds that are accounted for together.
        sampling: Probability with which an update counted.
    """

    epsilon: float
    delta: float
    noise: float
    deviation: float
    rounds: int
    sampling: float


@dataclass(frozen=True)
class AggregateReport:
    """The report of ``edgepeft.aggregate``.

    Attributes:
        rule, weights, robust, clip: The settings.
        cut: Number of values that a robust statistic leaves out at either end of each coordinate.
        base_sha256, adapter_sha256: The bundle's base, and the adapter that the round started from.
        updates: The updates that counted, in the order of the hashes; if updates are sampled, those that could count.
        duplicates: Number of files with the same content as another file.
        refused: Files that did not count.
        change: L2 norm of the result's change since the start; ``None`` for a stack, whose matrices are longer.
        merge_error: The error of averaging LoRA pairs; ``None`` without pairs.
        sparse: Sparse changes, by the name of the changed tensor.
        privacy: The privacy spent; ``None`` without noise.
    """

    rule: str
    weights: str
    robust: str | None
    cut: int | None
    clip: float | None
    base_sha256: str
    adapter_sha256: str
    updates: tuple[CountedUpdate, ...]
    duplicates: int
    refused: tuple[Refusal, ...]
    change: float | None
    merge_error: ProductError | None = None
    sparse: dict[str, SparseUnion] = field(default_factory=dict)
    privacy: Spent | None = None

    def to_json(self, more: Mapping[str, object] | None = None) -> str:
        """Return JSON, with weights divided by their sum; for a private round, only public facts."""
        total, shown = sum(update.weight for update in self.updates), self if self.privacy is None else self._public()
        plain = {**asdict(shown), "refused": [refusal.to_dict() for refusal in shown.refused]}
        for update in plain["updates"]:
            update["weight"] /= total
        return json.dumps({"format": FORMAT, **plain, **(more or {})}, indent=1, allow_nan=False) + "\n"

    def _public(self) -> AggregateReport:
        """Omit everything that is computed from updates before the noise."""
        return replace(self, updates=(), duplicates=0, refused=(), merge_error=None, sparse={})


def write_report(path: Path, text: str) -> None:
    """Write a report atomically."""
    write_atomically(path, [text.encode()])
