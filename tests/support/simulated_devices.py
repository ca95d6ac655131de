"""Simulated devices: updates that differ from an adapter by random numbers, written as devices write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.adapter_source import AdapterSource, load_adapter
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.train.update import Update, write_update

Tensors = dict[str, Array]


def drifted(
    bundle: Bundle, count: int, drift: float = 0.1, seed: int = 0, adapter: AdapterSource | None = None
) -> list[Tensors]:
    """Parameters of ``count`` devices, each a normal step of that size away from the adapter."""
    draw = np.random.default_rng(seed)
    start, _ = load_adapter(bundle, adapter)
    return [{name: _step(array, drift, draw) for name, array in start.items()} for _ in range(count)]


def _step(array: Array, drift: float, draw: np.random.Generator) -> Array:
    return np.asarray(array + drift * draw.normal(size=array.shape), array.dtype)


def send(
    bundle: Bundle,
    fleet: list[Tensors],
    folder: Path,
    adapter: AdapterSource | None = None,
    examples: list[int] | None = None,
) -> list[Path]:
    """Write the devices' updates; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    _, digest = load_adapter(bundle, adapter)
    return [
        write_update(
            folder / f"device{number}.safetensors",
            Update(
                tensors,
                bundle.base_sha256,
                digest,
                bundle.manifest.provenance,
                (examples or [8] * len(fleet))[number],
                4,
            ),
        )
        for number, tensors in enumerate(fleet)
    ]
