"""onnxsim's step graph (forward, backward and Adam in one) on stock onnxruntime, its state bound as its own loop does.

Its own loop has the compiler in the same process, which takes more memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.settings import LEARNING_RATE
from benchmarks.sides.turns import serve

BETAS = (0.9, 0.999)


class Loop:
    """The state of a run."""

    def __init__(self, folder: Path, name: str, threads: int) -> None:
        about = json.loads((folder / name / "step.json").read_text("utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(folder / name / "step.onnx", options)
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._next, self._loss, self._steps = about["state"], about["loss"], 0
        self._state = {key: _value(array) for key, array in np.load(folder / name / "state.npz").items()}
        wanted = {value.name for value in self._session.get_inputs()}
        batch = dict(np.load(folder / "batch.npz")) | {"one_hot": np.load(folder / name / "one_hot.npy")}
        self._batch = {key: _value(array) for key, array in batch.items() if key in wanted}

    def step(self) -> float:
        """Run one step and return its loss."""
        self._steps += 1
        m, v = (1 / (1 - beta**self._steps) for beta in BETAS)
        numbers = {"lr": LEARNING_RATE, "m_correction": m, "v_correction": v}
        feeds = {key: _value(np.asarray(number, np.float32)) for key, number in numbers.items()}
        values = self._session.run_with_ort_values(self._outputs, {**self._batch, **self._state, **feeds})
        made = dict(zip(self._outputs, values, strict=True))
        self._state = {key: made[output] for key, output in self._next.items()}
        return float(made[self._loss].numpy().item())


def _value(array: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


if __name__ == "__main__":
    serve(Loop(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])).step)
