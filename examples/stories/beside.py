"""What the stories share: the same training in PyTorch, and a line that compares both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = Mapping[str, NDArray[np.generic]]


def batches(arrays: Arrays, batch_size: int, epochs: int) -> Iterator[dict[str, Tensor]]:
    """The batches of ``Trainer.fit`` with seed 0, in its order."""
    count = len(next(iter(arrays.values())))
    for epoch in range(epochs):
        order = np.random.default_rng([0, epoch]).permutation(count)
        for start in range(0, count, batch_size):
            rows = order[start : start + batch_size]
            yield {name: torch.from_numpy(array[rows]) for name, array in arrays.items()}


def train(
    model: nn.Module,
    loss: Callable[[dict[str, Tensor]], Tensor],
    data: Iterator[dict[str, Tensor]],
    lr: float,
    weight_decay: float = 0.01,
) -> list[float]:
    """Train what requires a gradient with ``torch.optim.AdamW``; biases and norms do not decay. Returns the losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=lr), []
    for batch in data:
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def compared(what: str, here: float, torch_result: float) -> None:
    """Print a figure of the device's model and that of PyTorch's."""
    print(f"  {what}: {here:.4f}; PyTorch: {torch_result:.4f}")
