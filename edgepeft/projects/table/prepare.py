"""On the workstation: compile a model of rows of numbers into ``bundle``, which a device trains."""

import csv
import shutil

import torch
from torch import nn

import edgepeft

with open("data.csv", encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
columns = [name for name in rows[0] if name != "label"]
classes = sorted({row["label"] for row in rows})
numbers = torch.tensor([[float(row[name]) for name in columns] for row in rows])


class Standardized(nn.Module):
    """Divides each column by its spread, so that the device gets the numbers as they are."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, numbers: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", numbers.mean(dim=0))
        self.register_buffer("std", numbers.std(dim=0) + 1e-6)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Return rows [batch, columns] with mean 0 and standard deviation 1."""
        return (row - self.mean) / self.std


torch.manual_seed(0)
model = nn.Sequential(Standardized(numbers), nn.Linear(len(columns), 32), nn.ReLU(), nn.Linear(32, len(classes)))
prepared = edgepeft.prepare(
    model,
    numbers[:2],
    method="full",  # a new model trains whole; for a trained one: edgepeft.Lora(rank=8, target_modules=("1",))
    classes=classes,
    out="bundle",
    overwrite=True,
)
shutil.rmtree("run", ignore_errors=True)  # the run of an older bundle
print(f"{prepared.bundle}: {prepared.trainable:,} trainable elements, classes {', '.join(classes)}")
