"""Several labels at once: which digit an image shows, whether it is even, and whether its digit has a closed loop.

scikit-learn's digits, a small CNN, ``bce_with_logits`` over 12 labels. The device's training and PyTorch's see the same
batches.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import beside
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import edgepeft
from edgepeft_runtime import Trainer

CLASSES = [*map(str, range(10)), "even", "loop"]
LOOPS = (0, 6, 8, 9)
EPOCHS, BATCH, LR = 8, 32, 5e-3


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = np.concatenate(
        [np.eye(10)[digits], digits[:, None] % 2 == 0, np.isin(digits, LOOPS)[:, None]], axis=1
    ).astype(np.float32)
    train = {"input": images[:1200], "labels": labels[:1200]}
    test = {"input": images[1200:], "labels": labels[1200:]}
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, len(CLASSES))
    )
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        edgepeft.prepare(
            model, torch.zeros(2, 1, 8, 8), method="full", loss="bce_with_logits", classes=CLASSES, out=bundle
        )
        with Trainer.open(bundle) as trainer:
            before = trainer.evaluate(test, metrics=["f1"])
            trainer.fit(train, epochs=EPOCHS, batch_size=BATCH, lr=LR)
            after = trainer.evaluate(test, metrics=["f1"])
            scores = trainer.predict(test)["output"]
    beside.train(
        twin,
        lambda batch: nn.functional.binary_cross_entropy_with_logits(twin(batch["input"]), batch["labels"]),
        beside.batches(train, BATCH, EPOCHS),
        LR,
    )
    with torch.no_grad():
        expected = twin(torch.from_numpy(test["input"])).numpy()
    print(f"1,200 digits to train on, {len(test['input'])} held out, labels: {', '.join(CLASSES)}")
    print(f"  macro F1 {before.metrics['f1'].value:.3f} -> {after.metrics['f1'].value:.3f}")
    for at, name in ((10, "even"), (11, "loop")):
        right = (test["labels"][:, at] > 0.5) == (scores[:, at] > 0)
        beside.compared(
            f"accuracy of {name!r}", right.mean(), ((test["labels"][:, at] > 0.5) == (expected[:, at] > 0)).mean()
        )
    print(f"  largest difference of a score to PyTorch's: {np.abs(scores - expected).max():.1e}")


if __name__ == "__main__":
    main()
