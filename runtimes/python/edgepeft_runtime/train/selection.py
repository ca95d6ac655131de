"""Picks the elements that train, by the size of their gradient: once, before the first step (section 3 of the SPEC)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import SparseSpec
from edgepeft_runtime.engine.engine import Engine, TrainState
from edgepeft_runtime.errors import Diverged
from edgepeft_runtime.files.tensorfile import Array

AT_ONCE = 1 << 22
"""Elements of dense gradients that are in memory at a time. More tensors take more runs over the same batches."""


def largest(sizes: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Return the ascending indices of the ``count`` largest values of a vector; of equal values, the first ones."""
    bound = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    above = np.flatnonzero(sizes > bound)
    equal = np.flatnonzero(sizes == bound)[: count - len(above)]
    return np.sort(np.concatenate([above, equal])).astype(np.int32)


def to_pick(engine: Engine, manifest: Manifest, state: TrainState) -> list[SparseSpec]:
    """Return the sparse tensors whose indices are still to be picked."""
    open_ = [spec for spec in manifest.sparse if spec.gradient is not None]
    indices, _ = engine.arrays(TrainState({spec.indices: state.parameters[spec.indices] for spec in open_}, {}))
    return [spec for spec in open_ if int(indices[spec.indices][0]) < 0]


def pick(
    engine: Engine, manifest: Manifest, state: TrainState, batches: Sequence[Mapping[str, Array]]
) -> dict[str, Array]:
    """Return indices, by name, for all tensors that still need them: where the summed gradient magnitudes are largest.

    Raises:
        TrainingError: a gradient is not finite.
    """
    counts = {spec.name: spec.size for spec in manifest.parameters}
    indices: dict[str, Array] = {}
    for group in _groups(to_pick(engine, manifest, state)):
        sizes = [np.zeros(spec.size, np.float32) for spec in group]
        for batch in batches:
            for total, gradient in zip(sizes, engine.gradients(state, batch, group), strict=True):
                total += np.abs(gradient.reshape(-1))
        for spec, total in zip(group, sizes, strict=True):
            _check_finite(spec, total)
            indices[spec.indices] = largest(total, counts[spec.indices])
    return indices


def _groups(specs: Sequence[SparseSpec]) -> Iterator[list[SparseSpec]]:
    """Split tensors into groups whose gradients are in memory at a time."""
    group: list[SparseSpec] = []
    for spec in specs:
        if group and sum(other.size for other in (*group, spec)) > AT_ONCE:
            yield group
            group = []
        group.append(spec)
    if group:
        yield group


def _check_finite(spec: SparseSpec, sizes: NDArray[np.float32]) -> None:
    if not np.isfinite(sizes).all():
        raise Diverged(
            f"The gradient of {spec.tensor} is not finite, so no elements can be picked by it.",
            context="the first batches decide which elements train",
            hint="look for extreme values in the data.",
        )
