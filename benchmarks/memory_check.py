"""Compare the predicted with the measured anonymous memory of a train step: ``python -m benchmarks.memory_check``.

The cases are MiniLM with LoRA in fp32 and int8, in one graph and in segments, at sizes from 8 x 16 to 32 x 64.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import edgepeft
from benchmarks.cases.minilm import model_path
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.train.memory.prediction import measured_peak, predict

SIZES = ((8, 16), (8, 64), (8, 128), (32, 64), (4, 256))
VARIANTS = (("fp32", "constant"), ("int8", "constant"), ("int8", "input"))


def main() -> None:
    print(f"{'base':6}{'weights':10}{'sizes':>10}{'predicted MB':>14}{'measured MB':>13}{'off':>8}")
    for compute, weights in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            bundle = _bundle(Path(folder), compute, weights)
            for batch, sequence in SIZES:
                sizes = {"batch": batch, "sequence": sequence}
                predicted = predict(bundle, sizes).peak(sizes).anonymous
                measured = measured_peak(bundle, sizes).anonymous
                off = f"{100 * (predicted / measured - 1):+.1f} %"
                shown = f"{batch} x {sequence}"
                print(
                    f"{compute:6}{weights:10}{shown:>10}{predicted / 1e6:>14.1f}{measured / 1e6:>13.1f}{off:>8}",
                    flush=True,
                )


def _bundle(folder: Path, compute: str, weights: str) -> Bundle:
    source = edgepeft.load_source(model_path(), task="text-classification", classes=list("abcdefgh"), max_length=256)
    method = edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value"))
    made = edgepeft.prepare(
        source,
        method=method,
        compute=compute,
        compression=edgepeft.Compression(weights=weights),
        out=folder / "bundle",
    )
    return Bundle.open(made.bundle)


if __name__ == "__main__":
    main()
