"""Make the bundle of the phone page: ``python examples/phone_browser/prepare.py``.

A small CNN learns scikit-learn's handwritten digits; the page teaches it the signs that its user draws.
The bundle is committed, so that the page is built without Python.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import AdamW

OUT = Path(__file__).parent / "bundle"


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


def learned() -> nn.Module:
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


def main() -> None:
    method = edgepeft.Lora(rank=4, target_modules=("middle", "top", "hidden"), modules_to_save=("head",))
    edgepeft.prepare(
        learned(),
        {"image": torch.zeros(2, 1, 8, 8)},
        method=method,
        optimizer=AdamW(lr=3e-3, max_grad_norm=1.0),
        classes=[str(digit) for digit in range(10)],
        out=OUT,
        overwrite=True,
    )


if __name__ == "__main__":
    main()
