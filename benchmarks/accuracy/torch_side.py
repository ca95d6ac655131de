"""PyTorch's run in fp32: a plain loop over the same batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy.plan import CLIP, Batch, Plan, cut
from benchmarks.sides.torch_peft import adamw


def run(model: nn.Module, data: Path, plan: Plan, seed: int, threads: int) -> float:
    """Train ``model``, adapters attached, as planned; return the held-out accuracy."""
    torch.set_num_threads(threads)
    train, test = (dict(np.load(data / name)) for name in ("train.npz", "test.npz"))
    steps = plan.steps(len(train["labels"]))
    trainable = [parameter for parameter in model.eval().parameters() if parameter.requires_grad]
    optimizer = adamw(model, plan.learning_rate)
    for step, batch in enumerate(plan.batches(train, seed), 1):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step, steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(_scores(model, batch), torch.from_numpy(batch["labels"])).backward()
        nn.utils.clip_grad_norm_(trainable, CLIP)
        optimizer.step()
    with torch.no_grad():
        right = [_scores(model, batch).argmax(1).numpy() == batch["labels"] for batch in cut(test, 32)]
    return float(np.concatenate(right).mean())


def _scores(model: nn.Module, batch: Batch) -> Tensor:
    result = model(**{name: torch.from_numpy(array) for name, array in batch.items() if name != "labels"})
    return result if isinstance(result, Tensor) else result.logits
