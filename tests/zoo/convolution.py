"""A residual network with group norm, strides, dilation and groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.networks import Network, _images


class ResidualCnn(nn.Module):
    """Group norm, a strided stem, a dilated and a grouped convolution with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(2, 8)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.norm2 = nn.GroupNorm(4, 8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
        self.shortcut = nn.Conv2d(8, 12, 1)
        self.classifier = nn.Linear(12, 6)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(image)))
        x = x + nn.functional.silu(self.norm2(self.dilated(x)))
        x = self.shortcut(x) + nn.functional.gelu(self.grouped(x))
        return self.classifier(x.mean(dim=(2, 3)))


def residual_cnn() -> nn.Module:
    torch.manual_seed(0)
    return ResidualCnn()


NETWORKS: dict[str, Network] = {
    "residual-cnn": Network(
        residual_cnn,
        lambda: {"image": torch.zeros(2, 3, 16, 16)},
        _images("image", (3, 16, 16), 6),
        "cross_entropy",
        ("stem", "shortcut"),
    )
}
