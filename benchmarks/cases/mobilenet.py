"""A CNN with the layers of MobileNetV2 (Sandler et al., CVPR 2018, table 2), 10 classes, random weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import edgepeft
from benchmarks.cases.base import MAIN, Batch, Case

CLASSES, SIDE, ROWS = 10, 96, 8
BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
"""Expansion, channels, repeats, stride of the first."""


class Block(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Inverted residual: widen by a pointwise convolution, filter each channel, narrow; [n, c, h, w] both ways."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.residual = stride == 1 and channels == out
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.project = nn.Conv2d(wide, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.norm1(self.expand(x)))
        y = nn.functional.relu6(self.norm2(self.depthwise(y)))
        y = self.norm3(self.project(y))
        return x + y if self.residual else y


class MobileNet(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Stem, 17 blocks, a last pointwise convolution, and a linear classifier over the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        blocks, channels = [], 32
        for expansion, out, repeats, stride in BLOCKS:
            for i in range(repeats):
                blocks.append(Block(channels, out, expansion, stride if i == 0 else 1))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(channels, 1280, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(1280)
        self.classifier = nn.Linear(1280, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norm1(self.stem(image)))
        x = nn.functional.relu6(self.norm2(self.last(self.blocks(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def fit_norms(model: nn.Module) -> nn.Module:
    """Give every norm running statistics that fit the weights, so that signals keep their size; returns ``model``."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(ROWS, 3, SIDE, SIDE))
    return model.eval()


def image_batch() -> Batch:
    """Random images [rows, 3, side, side] and a class for each."""
    draw = np.random.default_rng(0)
    images = draw.standard_normal((ROWS, 3, SIDE, SIDE), dtype=np.float32)
    return {"image": images, "labels": draw.integers(0, CLASSES, ROWS)}


def _source() -> edgepeft.Source:
    torch.manual_seed(0)
    return edgepeft.Source(fit_norms(MobileNet()), {"image": torch.zeros(2, 3, SIDE, SIDE)})


LORA = Case(
    summary="MobileNetV2 (2.2 M parameters), LoRA r=8 on the pointwise convolutions, batch 8 at 96 x 96",
    source=_source,
    method=edgepeft.Lora(rank=8, target_modules=("expand", "project"), modules_to_save=("classifier",)),
    batch=image_batch,
    skipped={"edgepeft-int8-pruned": "heads and feed-forward neurons are pruned, and a CNN has none"},
)

BIAS = Case(
    summary="MobileNetV2 (2.2 M parameters), biases (BitFit), batch 8 at 96 x 96",
    source=_source,
    method=edgepeft.BitFit(),
    batch=image_batch,
    sides=MAIN,
)
