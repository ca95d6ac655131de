"""The network of the story of a table, for ``edgepeft prepare network.py:make``."""

from __future__ import annotations

import torch
from torch import nn


def make() -> tuple[nn.Module, torch.Tensor]:
    """A network of 530 parameters for 30 columns, and an example."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2)), torch.zeros(2, 30)
