"""Parts of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import BadHeldOutFraction
from edgepeft_runtime.data.batch import Batch
from edgepeft_runtime.data.datasets import Dataset


@dataclass(frozen=True)
class Rows:
    """Some examples of a data set, as a data set.

    Attributes:
        dataset: the whole.
        rows: numbers of the examples, int64 ``[examples]``.
    """

    dataset: Dataset
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The examples of the given numbers, counted within the part."""
        return self.dataset.batch(self.rows[rows])


def split(dataset: Dataset, share: float, seed: int = 0) -> tuple[Rows, Rows]:
    """Cut a data set in two at random: what is left to train on, and a ``share`` (0 to 1, exclusive) held out.

    The same data set, share and seed give the same parts, so that a run that is resumed holds out the same examples.
    """
    total = len(dataset)
    held_out = round(total * share) if 0.0 < share < 1.0 else 0
    if not 0 < held_out < total:
        raise BadHeldOutFraction(
            f"A share of {share} of {total} examples cannot be held out.",
            context=f"it leaves {total - held_out} to train on and {held_out} to validate with",
            hint="give a share between 0 and 1 that leaves at least one example on both sides.",
        )
    order = np.random.default_rng(seed).permutation(total)
    return Rows(dataset, np.sort(order[held_out:])), Rows(dataset, np.sort(order[:held_out]))
