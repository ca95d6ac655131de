"""Runs in the environment of the training wheel: ``python -P official_tool.py FORWARD.onnx FOLDER PARAMETER...``.

Writes ``training_model.onnx``, whose gradient ONNX Runtime's own builder has made, if its runtime has kernels for it.
That environment has no onnx_ir, so this file imports nothing of this package.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import onnx

from edgepeft_runtime.engine.ort_training.engine import training_package


def main(forward: Path, folder: Path, parameters: Sequence[str]) -> None:
    training_package()
    artifacts, api = import_module("onnxruntime.training.artifacts"), import_module("onnxruntime.training.api")
    with tempfile.TemporaryDirectory() as staging:
        artifacts.generate_artifacts(onnx.load(forward), requires_grad=list(parameters), artifact_directory=staging)
        made = Path(staging) / "training_model.onnx"
        api.Module(str(made), api.CheckpointState.load_checkpoint(str(Path(staging) / "checkpoint")))
        (folder / made.name).write_bytes(made.read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
