"""The steps both engines take: a learning rate and one or more batches each, in one file. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Batch = Mapping[str, NDArray[np.generic]]
Steps = list[tuple[float, list[dict[str, NDArray[np.generic]]]]]
FILE = "plan.npz"


def write_plan(folder: Path, steps: Sequence[tuple[float, Sequence[Batch]]]) -> None:
    """Write the steps to ``plan.npz``."""
    arrays: dict[str, NDArray[np.generic]] = {"rates": np.array([rate for rate, _ in steps])}
    for number, (_, batches) in enumerate(steps):
        for part, batch in enumerate(batches):
            arrays |= {f"{number}/{part}/{name}": array for name, array in batch.items()}
    np.savez(folder / FILE, **arrays)


def read_plan(folder: Path) -> Steps:
    """The steps that ``write_plan`` wrote."""
    with np.load(folder / FILE) as file:
        steps: Steps = [(float(rate), []) for rate in file["rates"]]
        for key in file.files:
            if key != "rates":
                number, part, name = key.split("/", 2)
                batches = steps[int(number)][1]
                while len(batches) <= int(part):
                    batches.append({})
                batches[int(part)][name] = file[key]
    return steps
