"""The accumulators of one optimizer step: flat sums of gradients, one per bucket, zero at its start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from edgepeft_runtime.bundle.programs import Accumulation
from edgepeft_runtime.bundle.specs import Bucket
from edgepeft_runtime.engine.sessions import OrtTensors
from edgepeft_runtime.errors import BadProgram
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.shown import quoted


class Accumulators:
    """Sums of gradients. A gradient of a whole bucket is kept as it is until another one is added to it."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._sizes = {bucket.name: bucket.size for bucket in buckets}
        self._whole: dict[str, ort.OrtValue] = {}
        self._sums: dict[str, Array] = {}

    def add(self, item: Accumulation, gradient: ort.OrtValue) -> None:
        """Add a gradient to its part of a bucket; raises ``BadProgram`` if it does not fit there."""
        shape, size = gradient.shape(), self._sizes[item.bucket]
        if gradient.data_type() != "tensor(float)" or len(shape) != 1 or item.offset + shape[0] > size:
            facts = f"{quoted(item.output)}: {gradient.data_type()} {shape} at {item.offset} of {size} elements"
            raise BadProgram(f"A gradient does not fit into the bucket {quoted(item.bucket)}.", facts)
        if shape[0] == size and item.bucket not in self._whole and item.bucket not in self._sums:
            self._whole[item.bucket] = gradient
            return
        part = self._own(item.bucket)[item.offset : item.offset + shape[0]]
        with np.errstate(invalid="ignore", over="ignore"):  # a gradient that is not finite is refused later
            np.add(part, gradient.numpy(), out=part)

    def add_all(self, other: Accumulators) -> None:
        """Add the sums of another step of the same bundle."""
        for bucket, total in other.values().items():
            self.add(Accumulation(bucket, bucket, 0), total)

    def replace(self, bucket: str, total: Array) -> None:
        """Set the sum of a bucket."""
        self._whole.pop(bucket, None)
        self._sums[bucket] = total

    def array(self, bucket: str) -> Array:
        """Return the sum of a bucket, which must not be changed."""
        return self._whole[bucket].numpy() if bucket in self._whole else self._own(bucket)

    def values(self) -> OrtTensors:
        """Return all sums as inputs of ``optimizer.onnx``."""
        return {
            name: self._whole[name] if name in self._whole else ort.OrtValue.ortvalue_from_numpy(self._own(name))
            for name in self._sizes
        }

    def _own(self, bucket: str) -> Array:
        """Return the sum of a bucket in memory that may be changed: not in a tensor of ONNX Runtime."""
        if bucket not in self._sums:
            whole = self._whole.pop(bucket, None)
            self._sums[bucket] = np.zeros(self._sizes[bucket], np.float32) if whole is None else np.array(whole.numpy())
        return self._sums[bucket]
