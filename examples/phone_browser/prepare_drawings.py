"""Make the bundle for drawings: ``python examples/phone_browser/prepare_drawings.py``.

A small CNN learns scikit-learn's handwritten digits. Its last layer is then replaced by one of zeros for ten words that
the page's user chooses, so that it knows none of them. The bundle is committed: the page is built without Python.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import AdamW

OUT = Path(__file__).parent / "bundles" / "drawings"
WORDS = [f"word {index}" for index in range(1, 11)]


class Cnn(nn.Module):
    """Three convolutions and two linear layers: 30,730 parameters. The input is a drawing as 8 x 8 fractions of ink."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 32, 3, padding=1)
        self.top = nn.Conv2d(32, 32, 3, padding=1)
        self.hidden = nn.Linear(128, 120)
        self.head = nn.Linear(120, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.middle(torch.relu(self.stem(image)))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.top(x)), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def learned() -> Cnn:
    """The CNN after 40 epochs over the digits, each shifted by up to a pixel."""
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels.reshape(-1, 1, 8, 8) / 16).float(), torch.from_numpy(digits)
    model = Cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        for rows in torch.randperm(len(labels)).split(64):
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows].roll(shift, (2, 3))), labels[rows]).backward()
            optimizer.step()
    model.eval()
    print(f"accuracy on the digits it has learned: {(model(images).argmax(1) == labels).float().mean():.3f}")
    return model


def blank(head: nn.Linear) -> nn.Linear:
    """Return a last layer of zeros: each word is as probable as any other."""
    layer = nn.Linear(head.in_features, len(WORDS))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def main() -> None:
    model = learned()
    model.head = blank(model.head)
    method = edgepeft.Lora(rank=4, target_modules=("middle", "top", "hidden"), modules_to_save=("head",))
    edgepeft.prepare(
        model,
        {"image": torch.zeros(2, 1, 8, 8)},
        method=method,
        optimizer=AdamW(lr=3e-3, max_grad_norm=1.0),
        classes=WORDS,
        out=OUT,
        overwrite=True,
    )


if __name__ == "__main__":
    main()
