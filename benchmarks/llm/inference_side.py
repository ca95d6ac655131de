"""The base model's forward pass in fp32 on stock onnxruntime: no training, a lower bound for other engines."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.llm.serving import Step, serve


def main(model: Path, batch: Path, threads: int) -> None:
    arrays = np.load(batch)

    def open_() -> Step:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model / "model.onnx", options)
        feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
        return lambda: session.run(None, feeds) and None

    serve(open_)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
