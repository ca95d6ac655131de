"""On the workstation: compile a model of images into ``bundle``, which a device trains."""

import shutil
from pathlib import Path

import torch
from torch import nn

import edgepeft
from edgepeft_runtime.bundle.specs import ImageSpec

IMAGE = ImageSpec(input="image", size=(16, 16), channels=1, mean=(0.3,), std=(0.3,))
"""How images become the input: resized, then (pixel - mean) / std for pixels from 0 to 1; channels=3 reads colors."""


class Network(nn.Module):
    """Two convolutions and a linear layer. Replace it by your own network, or by a model directory of transformers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(16 * 4, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return scores [batch, classes] of images [batch, 1, 16, 16]."""
        pooled = nn.functional.adaptive_max_pool2d(self.features(image), 2)
        scores: torch.Tensor = self.head(pooled.flatten(1))
        return scores


classes = sorted(folder.name for folder in Path("data").iterdir() if folder.is_dir())
torch.manual_seed(0)
prepared = edgepeft.prepare(
    Network(len(classes)),
    {"image": torch.zeros(2, 1, 16, 16)},
    method="full",  # a new model trains whole; for a trained one: edgepeft.Lora(rank=8)
    classes=classes,
    preprocessing=edgepeft.Preprocessing(image=IMAGE),
    out="bundle",
    overwrite=True,
)
shutil.rmtree("run", ignore_errors=True)  # the run of an older bundle
print(f"{prepared.bundle}: {prepared.trainable:,} trainable elements, classes {', '.join(classes)}")
