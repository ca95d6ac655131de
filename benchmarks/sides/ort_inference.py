"""fp32 inference of the same batch with the base model: a lower bound for a training step."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.sides.turns import serve


def main(folder: Path, name: str, threads: int) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / name, options)
    arrays = np.load(folder / "batch.npz")
    feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
    serve(lambda: session.run(None, feeds) and None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
