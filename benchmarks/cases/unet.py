"""A small U-Net (Ronneberger et al., MICCAI 2015) of 16 to 64 channels that labels pixels; random weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import edgepeft
from benchmarks.cases.base import MAIN, Batch, Case
from benchmarks.cases.mobilenet import ROWS, SIDE, fit_norms, image_batch

CLASSES = 4


class Pair(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Two 3 x 3 convolutions, each with its norm and ReLU; [n, c, h, w] both ways."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm1(self.conv1(x)))
        return nn.functional.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Three resolutions down and up again; returns scores [n, h, w, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Pair(3, 16), Pair(16, 32), Pair(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1 = Pair(64, 32), Pair(32, 16)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        high = self.down1(image)
        middle = self.down2(self.pool(high))
        x = self.up2(self.bottom(self.pool(middle)))
        x = self.up1(self.join2(torch.cat([x, middle], dim=1)))
        return self.head(self.join1(torch.cat([x, high], dim=1))).permute(0, 2, 3, 1)


def _source() -> edgepeft.Source:
    torch.manual_seed(0)
    return edgepeft.Source(fit_norms(UNet()), {"image": torch.zeros(2, 3, SIDE, SIDE)})


def _batch() -> Batch:
    labels = np.random.default_rng(1).integers(0, CLASSES, (ROWS, SIDE, SIDE))
    return {**image_batch(), "labels": labels}


LORA = Case(
    summary="U-Net of 16 to 64 channels (0.1 M parameters), LoRA r=4 on the 3 x 3 convolutions, batch 8 at 96 x 96",
    source=_source,
    method=edgepeft.Lora(rank=4, target_modules=("conv1", "conv2"), modules_to_save=("head",)),
    batch=_batch,
    sides=MAIN,
)
