"""Make the bundle for photos: ``python examples/phone_browser/prepare_photos.py``.

A small CNN learns to recognise patches of three photos that scikit-learn and matplotlib ship, rotated, scaled and
recoloured: each patch is a class (exemplar networks, Dosovitskiy et al., arXiv:1406.6909). Its last layer is then
replaced by one of zeros for ten words that the page's user chooses. The bundle is committed.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from prepare_drawings import WORDS, blank
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime.bundle.specs import ImageSpec

OUT = Path(__file__).parent / "bundles" / "photos"
SIDE = 48
PATCHES = 240
STEPS, BATCH = 1500, 64
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Encoder(nn.Module):
    """Four strided convolutions and two linear layers: 87,000 parameters. The input is an RGB image, normalized."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.hidden = nn.Linear(2 * widths[-1], 128)
        self.head = nn.Linear(128, classes)

    def forward(self, image: Tensor) -> Tensor:
        for layer in self.layers:
            image = torch.relu(layer(image))
        pooled = torch.cat([image.mean((2, 3)), image.amax((2, 3))], 1)
        return self.head(torch.relu(self.hidden(pooled)))


def photos() -> list[Tensor]:
    """Return the photos as ``[3, height, width]``, from 0 to 1."""
    portrait = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    arrays = [*load_sample_images().images, np.asarray(portrait)]
    return [torch.from_numpy(np.array(array)).permute(2, 0, 1).float() / 255 for array in arrays]


def patches(draw: torch.Generator) -> Tensor:
    """Cut squares with some contrast from the photos, ``[PATCHES, 3, 64, 64]``."""
    found: list[Tensor] = []
    images = photos()
    while len(found) < PATCHES:
        image = images[len(found) % len(images)]
        side = int(torch.randint(48, 128, (), generator=draw))
        top = int(torch.randint(0, image.shape[1] - side, (), generator=draw))
        left = int(torch.randint(0, image.shape[2] - side, (), generator=draw))
        patch = image[:, top : top + side, left : left + side]
        if patch.std() > 0.08:
            found.append(nn.functional.interpolate(patch[None], size=(64, 64), mode="bilinear", antialias=True)[0])
    return torch.stack(found)


def changed(images: Tensor, draw: torch.Generator) -> Tensor:
    """Rotate by up to 25 degrees, scale, shift and recolour each image, and cut it to ``SIDE``."""
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=draw)

    angle, scale = uniform(-25, 25) * math.pi / 180, uniform(0.55, 0.95)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = uniform(-0.2, 0.2, 2)
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), [count, 3, SIDE, SIDE], align_corners=False)
    moved = nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
    coloured = moved * uniform(0.6, 1.3, 3, 1, 1) + uniform(-0.15, 0.15, 1, 1, 1)
    return coloured.clamp(0, 1)


def learned() -> Encoder:
    """Return the encoder after ``STEPS`` steps on patches."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model, images = Encoder(PATCHES), patches(draw)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    right = 0.0
    for _ in range(STEPS):
        rows = torch.randint(0, PATCHES, (BATCH,), generator=draw)
        logits = model((changed(images[rows], draw) - 0.5) / 0.25)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, rows).backward()
        optimizer.step()
        schedule.step()
        right = 0.95 * right + 0.05 * float((logits.argmax(1) == rows).float().mean())
    print(f"accuracy on changed patches, a running mean: {right:.3f}")
    return model.eval()


def main() -> None:
    model = learned()
    model.head = blank(model.head)
    method = edgepeft.Lora(rank=4, target_modules=("layers.2", "layers.3", "hidden"), modules_to_save=("head",))
    edgepeft.prepare(
        model,
        {"image": torch.zeros(2, 3, SIDE, SIDE)},
        method=method,
        optimizer=AdamW(lr=3e-3, max_grad_norm=1.0),
        classes=WORDS,
        preprocessing=edgepeft.Preprocessing(image=ImageSpec("image", (SIDE, SIDE), 3, MEAN, STD)),
        out=OUT,
        overwrite=True,
    )


if __name__ == "__main__":
    main()
