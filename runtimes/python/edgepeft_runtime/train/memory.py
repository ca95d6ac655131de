"""How much memory a train step takes: measured by small steps, computed for larger ones.

What a process holds whatever the batch (Python, onnxruntime, the weights and what onnxruntime makes of them) depends on
the machine, and so does how closely onnxruntime packs activations. Both are measured here, by two small steps in
processes of their own; the activations of any other size follow from the bundle's manifest.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import BundleError
from edgepeft_runtime.files.tensorfile import Array

SMALLEST = 2
"""Size of every symbolic dimension in the smaller step; a causal language model has nothing to predict at 1."""


@dataclass(frozen=True)
class Prediction:
    """The peak memory of a process that trains.

    Attributes:
        resident: bytes that it holds whatever the batch.
        packing: bytes of memory for each byte of activations: what onnxruntime's arena wastes.
    """

    bundle: Bundle
    resident: float
    packing: float

    def peak(self, sizes: Mapping[str, int]) -> int:
        """Bytes for a step at these sizes of the symbolic dimensions."""
        memory = self.bundle.manifest.memory
        assert memory is not None  # predict() has seen to it
        return int(self.resident + self.packing * memory.bytes_at(sizes))


def predict(bundle: Bundle, sizes: Mapping[str, int]) -> Prediction:
    """Measure two steps that are smaller than ``sizes``.

    Args:
        bundle: an opened bundle.
        sizes: of every symbolic dimension, at or above what will be asked for.

    Raises:
        BundleError: the manifest says nothing of activations, ``sizes`` does not fit it, or a step failed.
    """
    memory = bundle.manifest.memory
    if memory is None:
        raise BundleError(
            "no-memory-facts",
            "The bundle does not say what its activations take.",
            context=str(bundle.path),
            hint="prepare it again with this version of edgepeft.",
        )
    check_sizes(bundle.manifest, sizes)
    small = {name: min(SMALLEST, size) for name, size in sizes.items()}
    half = {name: max(small[name], size // 2) for name, size in sizes.items()}
    less, more = measured_peak(bundle, small), measured_peak(bundle, half)
    grown = memory.bytes_at(half) - memory.bytes_at(small)
    packing = max(1.0, (more - less) / grown) if grown > 0 else 1.0
    return Prediction(bundle, less - packing * memory.bytes_at(small), packing)


def check_sizes(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Refuse sizes that are not one for each symbolic dimension, within its limits."""
    wanted = manifest.dimensions
    wrong = [name for name in {*wanted, *sizes} if name not in wanted or name not in sizes]
    for name, size in sizes.items():
        largest = wanted[name].max if name in wanted else None
        if size < 1 or (largest is not None and size > largest):
            wrong.append(name)
    if wrong:
        known = [f"{name} up to {found.max}" if found.max else name for name, found in wanted.items()]
        raise BundleError(
            "sizes",
            f"The sizes do not fit the bundle: {', '.join(sorted(set(wrong)))}.",
            context=f"symbolic dimensions: {', '.join(known)}",
            hint="give one size for each, within its limit.",
        )


def measured_peak(bundle: Bundle, sizes: Mapping[str, int]) -> int:
    """The largest resident set of a process of its own that trains two steps on made-up data, in bytes."""
    given = [f"{name}={size}" for name, size in sizes.items()]
    command = [sys.executable, "-m", "edgepeft_runtime.train.memory", str(bundle.path), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BundleError(
            "step-failed",
            "A step on made-up data failed, so its memory cannot be measured.",
            context=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint="train on real data and read the peak it prints.",
        )
    return int(done.stdout)


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: ru_maxrss would count the parent's memory too, as a fork has it until it runs
        lines = status.read_text(encoding="ascii").splitlines()
        return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def made_up_batch(manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, Array]:
    """Zeros of the declared dtypes; a label of 0 is one of every kind."""
    specs = (*manifest.inputs, *manifest.labels)
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
        for spec in specs
    }


def main() -> None:
    """Train two steps on made-up data and print the peak.

    Run it as ``python -m edgepeft_runtime.train.memory BUNDLE NAME=SIZE...``.
    """
    from edgepeft_runtime.train.trainer import Trainer

    bundle = Bundle.open(sys.argv[1], verify=False)
    pairs = (argument.split("=") for argument in sys.argv[2:])
    batch = made_up_batch(bundle.manifest, {name: int(size) for name, size in pairs})
    with Trainer.open(bundle) as trainer:
        for _ in range(2):
            trainer.step(batch)
    print(peak_memory())


if __name__ == "__main__":
    main()
