"""The device runtime with the engine ``ort-training``: our train graph in the official layout."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.sides.turns import serve
from edgepeft_runtime import Trainer


def main(folder: Path, name: str, threads: int) -> None:
    batch = dict(np.load(folder / "batch.npz"))
    with Trainer.open(folder / name, threads=threads, engine="ort-training") as trainer:
        serve(lambda: trainer.step(batch))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
