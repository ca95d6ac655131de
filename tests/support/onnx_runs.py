"""Models in stock ONNX Runtime, and the texts that the tiny transformers of the tests are fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

IDS = np.array([[4, 5, 6, 7, 8], [9, 10, 11, 0, 0], [5, 5, 12, 13, 14]])
TEXT = {"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int64)}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model in stock ONNX Runtime, on one thread and silent."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def first_output(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of the model in a file, whose inputs are these and no others."""
    loaded = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in loaded.get_inputs()] == list(inputs)
    return np.asarray(loaded.run(None, inputs)[0])
