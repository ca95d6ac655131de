"""Split a data set, and select examples of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import BadHeldOutFraction
from edgepeft_runtime.data.batch import NamedBatch
from edgepeft_runtime.data.datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """Some examples of a data set, as a data set.

    Attributes:
        dataset: The whole data set.
        rows: Indices of the examples, int64 ``[examples]``.
    """

    dataset: Dataset
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: NDArray[np.int64]) -> NamedBatch:
        """Return the examples of these indices, counted within the part."""
        return self.dataset.batch(self.rows[rows])


def split(dataset: Dataset, fraction: float, seed: int = 0) -> tuple[Rows, Rows]:
    """Split a data set at random into examples to train on and a ``fraction`` (0 to 1, exclusive) of held-out ones.

    The same data set, fraction and seed result in the same parts, so a resumed run has the same held-out examples.
    """
    total = len(dataset)
    held_out = round(total * fraction) if 0.0 < fraction < 1.0 else 0
    if not 0 < held_out < total:
        raise BadHeldOutFraction(
            f"A fraction of {fraction} of {total} examples cannot be held out.",
            context=f"it leaves {total - held_out} to train on and {held_out} to validate with",
            hint="choose a fraction between 0 and 1 that leaves at least one example on both sides.",
        )
    order = np.random.default_rng(seed).permutation(total)
    return Rows(dataset, np.sort(order[held_out:])), Rows(dataset, np.sort(order[:held_out]))
