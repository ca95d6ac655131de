"""ExecuTorch's training module with its only optimizer in Python, SGD."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.extension.training import _load_for_executorch_for_training, get_sgd_optimizer

from benchmarks.sides.turns import serve

RATE = 1e-2
"""SGD moves less than Adam at the same rate."""


def main(folder: Path, name: str, threads: int) -> None:
    _unsafe_reset_threadpool(threads)
    module = _load_for_executorch_for_training(str(folder / name / "step.pte"))
    batch = dict(np.load(folder / "batch.npz"))
    names = json.loads((folder / name / "names.json").read_text("utf-8"))
    feeds = [torch.from_numpy(array) for array in (*map(batch.get, names), np.load(folder / "labels.npy"))]
    module.forward_backward("forward", feeds)
    optimizer = get_sgd_optimizer(module.named_parameters(), RATE)

    def step() -> float:
        (loss,) = module.forward_backward("forward", feeds)
        optimizer.step(module.named_gradients())
        return float(loss)

    serve(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
