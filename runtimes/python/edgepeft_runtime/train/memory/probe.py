"""Trains two steps on zeros and prints the memory of its process in bytes.

The numbers are the anonymous memory before the first step, and the peaks of anonymous memory and of files.

Run it as ``python -m edgepeft_runtime.train.memory.probe BUNDLE NAME=SIZE...``, with each symbolic dimension's size.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.memory.peak import PeakSampler, memory
from edgepeft_runtime.train.trainer import Trainer


def zeros(manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Return inputs and labels of the declared dtypes; a label of 0 is valid for every kind."""
    specs = (*manifest.inputs, *manifest.labels)
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in specs
    }


def main() -> None:
    """Train two steps and print the memory before them and its peaks."""
    bundle = Bundle.open(sys.argv[1], verify=False)
    pairs = (argument.split("=") for argument in sys.argv[2:])
    batch = zeros(bundle.manifest, {name: int(size) for name, size in pairs})
    with PeakSampler() as sampler, Trainer.open(bundle) as trainer:
        trainer.session.engine.load_graphs()
        before = memory().anonymous
        for _ in range(2):
            trainer.step(batch)
    print(before, *sampler.peak)


if __name__ == "__main__":
    main()
