"""Generate the official training artifacts: ``python -m benchmarks.sides.ort_artifacts FOLDER``.

FOLDER contains ``forward.onnx`` and ``names.json``, written by ``benchmarks.peers.official_forward``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx

from benchmarks.settings import EPSILON, WEIGHT_DECAY
from edgepeft_runtime.engine.ort_training.engine import training_package


def main(folder: Path) -> None:
    training_package()
    from onnxruntime.training import artifacts, onnxblock

    names = json.loads((folder / "names.json").read_text("utf-8"))
    model = onnx.load(str(folder / "forward.onnx"))
    trainable = [tensor.name for tensor in model.graph.initializer if tensor.name in set(names["trainable"])]
    frozen = [tensor.name for tensor in model.graph.initializer if tensor.name not in set(trainable)]
    artifacts.generate_artifacts(
        model,
        requires_grad=trainable,
        frozen_params=frozen,
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=onnxblock.optim.AdamW(eps=EPSILON, weight_decay=WEIGHT_DECAY),
        artifact_directory=str(folder),
    )
    _as_in_torch(folder / "optimizer_model.onnx")


def _as_in_torch(path: Path) -> None:
    """Let AdamW add epsilon as PyTorch does (``adam_mode`` 0); by default, it does so before the bias correction."""
    model = onnx.load(str(path))
    modes = [attribute for node in model.graph.node for attribute in node.attribute if attribute.name == "adam_mode"]
    assert modes, "the optimizer's graph has changed: it names no adam_mode"
    for attribute in modes:
        attribute.i = 0
    onnx.save(model, str(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
