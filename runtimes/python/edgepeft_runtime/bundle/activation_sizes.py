"""What a bundle says of the memory that a train step's activations take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.files.schema import Mark, Natural


@dataclass(frozen=True)
class MemorySpec:
    """Activations of a train step.

    Attributes:
        activations: for each moment that may be the fullest, bytes by the product of dimensions they grow with:
            ``{"batch*sequence": 1536, "": 64}``.
        micro_batch: examples that go through the graph at a time, where the bundle was prepared for a budget.
    """

    activations: tuple[Mapping[str, Natural], ...]
    micro_batch: Annotated[int | None, Mark.OPTIONAL] = None

    def bytes_at(self, sizes: Mapping[str, int]) -> int:
        """Bytes alive at the fullest moment, for sizes of all symbolic dimensions."""
        return max(
            (sum(_term(product, sizes) * count for product, count in moment.items()) for moment in self.activations),
            default=0,
        )


def _term(product: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in product.split("*")) if product else 1
