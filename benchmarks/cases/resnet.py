"""ResNet-18 (He et al., CVPR 2016, table 1), 10 classes, random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import edgepeft
from benchmarks.cases.base import MAIN, Case
from benchmarks.cases.mobilenet import CLASSES, SIDE, fit_norms, image_batch

STAGES = [(64, 1), (128, 2), (256, 2), (512, 2)]
"""Channels, stride of the first of two blocks."""


class Block(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Two 3 x 3 convolutions beside the identity, or beside a pointwise convolution; [n, c, h, w] both ways."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = None
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nn.functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Stem with pooling, 8 blocks, and a linear classifier over the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        blocks, channels = [], 64
        for out, stride in STAGES:
            blocks += [Block(channels, out, stride), Block(out, out, 1)]
            channels = out
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.pool(nn.functional.relu(self.norm(self.stem(image))))
        return self.classifier(self.blocks(x).mean(dim=(2, 3)))


def _source() -> edgepeft.Source:
    torch.manual_seed(0)
    return edgepeft.Source(fit_norms(ResNet()), {"image": torch.zeros(2, 3, SIDE, SIDE)})


LORA = Case(
    summary="ResNet-18 (11.2 M parameters), LoRA r=8 on the 3 x 3 convolutions, batch 8 at 96 x 96",
    source=_source,
    method=edgepeft.Lora(rank=8, target_modules=("conv1", "conv2"), modules_to_save=("classifier",)),
    batch=image_batch,
    sides=MAIN,
)
