"""PyTorch with HF peft, eager or compiled."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.case import LEARNING_RATE
from benchmarks.sides.turns import serve


def main(folder: Path, mode: str) -> None:
    warnings.simplefilter("ignore")
    model = torch.load(folder / "model.pt", weights_only=False).eval()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed, spared = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    batch = {name: torch.from_numpy(array) for name, array in np.load(folder / "batch.npz").items()}
    call = torch.compile(model) if mode == "compile" else model

    def step() -> float:
        optimizer.zero_grad()
        loss = call(**batch).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    serve(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
