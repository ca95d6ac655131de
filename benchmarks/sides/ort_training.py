"""onnxruntime-training with its official artifacts: Module and Optimizer as in its documentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.settings import LEARNING_RATE
from benchmarks.sides.turns import serve
from edgepeft_runtime.engine.ort_training.engine import training_package


def main(folder: Path, name: str, threads: int) -> None:
    training_package()
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    engine = folder / name
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    state = CheckpointState.load_checkpoint(str(engine / "checkpoint"))
    module = Module(str(engine / "training_model.onnx"), state, str(engine / "eval_model.onnx"), "cpu", options)
    optimizer = Optimizer(str(engine / "optimizer_model.onnx"), module)
    optimizer.set_learning_rate(LEARNING_RATE)
    feeds = _feeds(folder, json.loads((engine / "names.json").read_text("utf-8")))

    def step() -> float:
        module.train()
        loss = module(*feeds)
        optimizer.step()
        module.lazy_reset_grad()
        return float(np.asarray(loss))

    serve(step)


def _feeds(folder: Path, names: dict[str, list[str]]) -> list[np.ndarray]:
    """Inputs in the graph's order, then the labels as its loss expects them: one per row of the scores."""
    arrays = np.load(folder / "batch.npz")
    return [*(arrays[name] for name in names["inputs"]), np.load(folder / "labels.npy")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
