"""PyTorch with HF peft, eager or compiled."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.settings import LEARNING_RATE, WEIGHT_DECAY
from benchmarks.sides.turns import serve


def main(folder: Path, mode: str, threads: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    loss_of = LOSSES[json.loads((folder / "case.json").read_text("utf-8"))["loss"]]
    model = torch.load(folder / "model.pt", weights_only=False).eval()
    optimizer = adamw(model, LEARNING_RATE)
    inputs = {name: torch.from_numpy(array) for name, array in np.load(folder / "batch.npz").items()}
    labels = inputs.pop("labels")
    call = torch.compile(model) if mode == "compile" else model

    def step() -> float:
        optimizer.zero_grad()
        result = call(**inputs)
        loss = loss_of(result if isinstance(result, torch.Tensor) else result.logits, labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    serve(step)


def adamw(model: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """Weight decay on matrices alone, as on the device."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed, spared = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over rows; the classes lie on the last axis."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def causal_lm(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Each position [n, length, vocabulary] against the next token of labels [n, length]; mean over tokens."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


LOSSES = {"cross_entropy": cross_entropy, "causal_lm": causal_lm}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
