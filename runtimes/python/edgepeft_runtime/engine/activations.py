"""Keeps, for each example, the value below which nothing trains, so that later epochs start from it.

The value is kept in float16: in a residual stream a few channels are thousands of times as large as the others, so a
row in int8 with one scale would lose the others, while float16 rounds each by at most 1/2048. An example with a value
beyond float16 stays in float32. What is computed is rounded too before it is used, so that a run does not depend on
what happens to be kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.programs import TRAIN
from edgepeft_runtime.engine.program import Runner
from edgepeft_runtime.engine.row_store import KEY_BYTES, RowStore
from edgepeft_runtime.engine.sessions import OrtTensors, as_ort
from edgepeft_runtime.errors import NothingToCache
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import notice


def owner_of(bundle: Bundle, parameters: Mapping[str, Array]) -> bytes:
    """Return the hash of all that the kept value depends on, besides the example: not of what trains.

    Raises:
        NothingToCache: the bundle names no such value.
    """
    manifest = bundle.manifest
    if manifest.cache is None:
        raise NothingToCache(
            "There are no activations to keep: something trains in every part of this bundle's model.",
            context="manifest.json has no 'cache'",
            hint="train without it, or prepare the bundle with only the upper blocks trained.",
        )
    digest = hashlib.sha256(f"{bundle.graphs_sha256}\n{manifest.cache.value}\n".encode())
    for name in manifest.adapter.non_trainable:
        digest.update(np.ascontiguousarray(parameters[name]).tobytes())
    return digest.digest()


class Activations:
    """Returns the kept value of a batch, computing what is missing.

    Args:
        bundle: has a value to keep.
        runner: of its programs.
        rows: where the values are kept.
    """

    def __init__(self, bundle: Bundle, runner: Runner, rows: RowStore) -> None:
        cache = bundle.manifest.cache
        assert cache is not None  # owner_of() has checked it
        self._value = cache.value
        self._inputs = [spec.name for spec in bundle.manifest.inputs]
        self._runner = runner
        self._rows = rows
        self._full = False

    def known(self, batch: Mapping[str, Array], parameters: OrtTensors) -> OrtTensors:
        """Return the value of a batch, by its name."""
        keys = self._keys(batch)
        rows = [self._rows.get(key) for key in keys]
        if any(row is None for row in rows):
            computed = self._computed(batch, parameters, len(keys))
            for index, key in enumerate(keys):
                if rows[index] is None:
                    rows[index] = self.rounded(computed[index])
                    self._keep(key, rows[index])
        whole = [row for row in rows if row is not None]
        value = np.stack(whole, dtype=np.float32, casting="same_kind")
        return {self._value: ort.OrtValue.ortvalue_from_numpy(value)}

    def _computed(self, batch: Mapping[str, Array], parameters: OrtTensors, count: int) -> Array:
        found = self._runner.run(TRAIN, as_ort(batch), parameters, results=[self._value])[self._value]
        array: Array = found.numpy()
        if array.dtype != np.float32 or array.ndim == 0 or len(array) != count:
            raise NothingToCache(
                "The activations of this bundle cannot be kept for single examples.",
                context=f"{self._value}: {array.dtype.name} {list(array.shape)} for {count} examples",
                hint="train without keeping them.",
            )
        return array

    def _keep(self, key: bytes, row: Array | None) -> None:
        if row is None or self._full or self._rows.put(key, row):
            return
        self._full = True
        notice(
            f"There is no more room for activations ({self._rows.limit:,} bytes): those of {len(self._rows)} examples "
            "are kept, and those of the others are computed in each epoch."
        )

    def _keys(self, batch: Mapping[str, Array]) -> Sequence[bytes]:
        """Return a hash of the inputs of each example."""
        arrays = [np.ascontiguousarray(batch[name]) for name in self._inputs]
        keys = []
        for index in range(len(arrays[0])):
            digest = hashlib.blake2b(digest_size=KEY_BYTES)
            for array in arrays:
                digest.update(f"{array.dtype.str}{array.shape[1:]}".encode())
                digest.update(array[index].tobytes())
            keys.append(digest.digest())
        return keys

    @staticmethod
    def rounded(row: Array) -> Array:
        """Return the values of an example as they are kept."""
        with np.errstate(over="ignore"):
            half = row.astype(np.float16)
        return half if np.isfinite(half).all() else np.array(row)
