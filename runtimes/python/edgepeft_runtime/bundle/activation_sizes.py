"""Memory of a train step's activations as a function of the batch (``memory`` in section 2 of the SPEC)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from edgepeft_runtime.files.schema import Mark, Natural


@dataclass(frozen=True)
class MemorySpec:
    """Memory of the activations of a train step.

    Attributes:
        activations: a polynomial for each moment that may be the peak: bytes by product of dimensions, such as
            ``{"batch*sequence": 1536, "": 64}``.
        micro_batch: largest batch that fits the memory budget that the bundle was prepared for, if any.
    """

    activations: tuple[Mapping[str, Natural], ...]
    micro_batch: Annotated[int | None, Mark.OPTIONAL] = None

    def bytes_at(self, sizes: Mapping[str, int]) -> int:
        """Return the peak number of bytes for these sizes of all symbolic dimensions."""
        return max(
            (sum(_term(product, sizes) * count for product, count in moment.items()) for moment in self.activations),
            default=0,
        )


def _term(product: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in product.split("*")) if product else 1
