"""Makes the golden bundle: ``python -m tests.golden.make``, from the root of the repository.

It is one tiny bundle with what every runtime must make of it:

    bundle/            a convolutional classifier with LoRA (by peft) and a trained head; cross-entropy, clipped AdamW
    data.safetensors   ``image`` and ``labels`` of 40 examples; two labels do not count
    expected.json      ``batches``: first and last (exclusive) example of each step
                       ``losses``: of each step, as PyTorch computes them; ``relative_tolerance`` is how near a runtime
                       has to come
                       ``evaluation``: loss and accuracy on ``evaluate`` after the steps
                       ``outputs``: the logits for ``predict`` after the steps

Make it again only when the format or the compiler's graphs change: the files are committed, so that a change is seen.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime.files.tensorfile import write_tensors

HERE = Path(__file__).parent
BUNDLE, DATA, EXPECTED = HERE / "bundle", HERE / "data.safetensors", HERE / "expected.json"

CLASSES = ("dark", "light", "striped")
SIZES = (4, 3, 1, 6, 2, 4, 5, 1, 3, 7)
OPTIMIZER = AdamW(lr=0.02, weight_decay=0.05, max_grad_norm=1.0)


class Classifier(nn.Module):
    """Two convolutions, layer norm, GELU, a residual, and a linear head on 8 x 8 images of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.hidden = nn.Linear(6, 12)
        self.head = nn.Linear(12, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.gelu(self.first(image))
        x = nn.functional.max_pool2d(x + self.second(x), 2)
        x = self.norm(x.mean(dim=(2, 3)))
        return self.head(nn.functional.gelu(self.hidden(x)))


def model() -> nn.Module:
    """The network with LoRA; its values are numpy's, so that no version of torch changes them."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["second", "hidden"], modules_to_save=["head"])
    adapted: nn.Module = get_peft_model(Classifier(), config)
    draw = np.random.default_rng(2026)
    for name, parameter in adapted.named_parameters():
        scale = 0.0 if "lora_B" in name else 0.5
        values = draw.normal(scale=scale, size=tuple(parameter.shape)).astype(np.float32)
        parameter.data = torch.from_numpy(values + ("norm.weight" in name))
    return adapted.eval()


def data() -> dict[str, NDArray[np.generic]]:
    """Images whose label shows in their brightness or their stripes; two labels are -100."""
    draw = np.random.default_rng(7)
    labels = draw.integers(0, len(CLASSES), 40)
    image = draw.normal(scale=0.5, size=(40, 1, 8, 8)).astype(np.float32)
    image += np.float32([-1, 1, 0])[labels, None, None, None]
    image[labels == 2, :, ::2] += 2
    labels[[5, 17]] = -100
    return {"image": image, "labels": labels}


def prepare(out: Path) -> Path:
    """The golden bundle at ``out``."""
    return edgepeft.prepare(
        model(), {"image": torch.zeros(2, 1, 8, 8)}, classes=CLASSES, optimizer=OPTIMIZER, out=out, overwrite=True
    ).bundle


def expected() -> dict[str, Any]:
    """What PyTorch and peft make of it."""
    network, arrays = model(), data()
    image, labels = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["labels"])
    trainable = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.lr)
    ends = np.cumsum(SIZES).tolist()
    batches = list(zip([0, *ends[:-1]], ends, strict=True))
    losses = []
    for start, stop in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(image[start:stop]), labels[start:stop])
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = network(image)
    counts = labels != -100
    return {
        "relative_tolerance": 1e-5,
        "batches": batches,
        "losses": losses,
        "evaluate": [0, 40],
        "evaluation": {
            "loss": nn.functional.cross_entropy(logits, labels).item(),
            "accuracy": (logits.argmax(1) == labels)[counts].double().mean().item(),
        },
        "predict": [0, 4],
        "outputs": {"output": logits[:4].tolist()},
    }


def main() -> None:
    """Write everything."""
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(Path(folder) / "bundle")
        shutil.rmtree(BUNDLE, ignore_errors=True)
        shutil.copytree(made, BUNDLE)
    write_tensors(DATA, data())
    EXPECTED.write_text(json.dumps(expected(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
