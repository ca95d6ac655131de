"""Fine-tune a small CNN on a device for inverted and rotated digits, which it has never seen.

The workstation trains the CNN on scikit-learn's digits and prepares it. The device fine-tunes all parameters on
transformed digits, read as images from one folder per class. The workstation merges the update into the torch model
and into ONNX.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from device import parse_device_python, run
from sklearn.datasets import load_digits
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import AdamW

Digits = tuple[np.ndarray, np.ndarray]
"""Images float32 [n, 1, 8, 8] in 0..1, and labels int64 [n]."""


def main() -> None:
    device = parse_device_python(__doc__ or "")
    torch.manual_seed(0)
    home, away, test = load()
    model = Cnn().eval()
    learn(model, home)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "inbox").mkdir()
        np.savez(work / "train.npz", image=away[0], labels=away[1])
        np.savez(work / "test.npz", image=test[0], labels=test[1])
        prepare(model, work)
        fine_tune(work, device)
        bring_back(model, work, test)


def load() -> tuple[Digits, Digits, Digits]:
    """Digits as they are for the workstation; inverted and rotated ones, to train on and held out, for the device."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(labels))
    home, away, test = order[:900], order[900:1300], order[1300:]
    shifted = np.ascontiguousarray(np.rot90(1 - images, axes=(2, 3)))
    return (images[home], labels[home]), (shifted[away], labels[away]), (shifted[test], labels[test])


class Cnn(nn.Module):
    """Two convolution blocks, one of them depthwise, and a linear head: 3,306 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
        self.block = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.block(self.stem(image)).mean(dim=(2, 3)))


def learn(model: nn.Module, data: Digits) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    images, labels = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    for _ in range(30):
        for rows in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    model.eval()
    accuracy = (model(images).argmax(1) == labels).float().mean()
    print(f"workstation: trained on digits as they are, accuracy on them {accuracy:.3f}")


def prepare(model: nn.Module, work: Path) -> None:
    prepared = edgepeft.prepare(
        model,
        {"image": torch.zeros(2, 1, 8, 8)},
        method=edgepeft.Full(),
        optimizer=AdamW(lr=5e-3),
        classes=[str(digit) for digit in range(10)],
        out=work / "bundle",
    )
    print(f"workstation: prepared; {prepared.trainable:,} parameters train")


def fine_tune(work: Path, device: Path) -> None:
    bundle, test, update = work / "bundle", work / "test.npz", work / "inbox" / "update.safetensors"
    print("device: digits are inverted and rotated here")
    run(device, "evaluate", bundle, "--data", test)
    run(
        device, "train", bundle, "--data", work / "train.npz", "--state", work / "state", "--update", update,
        "--epochs", "30", "--batch-size", "32", "--schedule", "cosine", "--validate", "0.2", "--patience", "10",
    )  # fmt: skip
    run(device, "evaluate", bundle, "--data", test, "--adapter", update)
    run(device, "predict", bundle, "--data", test, "--adapter", update, "--out", work / "device.npz")


def bring_back(model: nn.Module, work: Path, test: Digits) -> None:
    (update,) = edgepeft.pull([work / "inbox"], work / "pulled", bundle=work / "bundle").accepted
    print(f"workstation: pulled {update.path.stat().st_size / 1e3:.0f} kB, verified")
    state = edgepeft.merge(work / "bundle", update.path, to="torch", out=work / "state_dict.pt")
    merged = edgepeft.merge(work / "bundle", update.path, to="onnx", out=work / "merged.onnx")
    model.load_state_dict(torch.load(state), strict=False)
    images, labels = test
    with torch.no_grad():
        in_torch = model(torch.from_numpy(images)).numpy()
    in_onnx = onnxruntime.InferenceSession(merged).run(None, {"image": images})[0]
    on_device = np.load(work / "device.npz")["output"]
    for name, scores in (("device", on_device), ("merged into torch", in_torch), ("merged into ONNX", in_onnx)):
        difference, accuracy = np.abs(scores - on_device).max(), (scores.argmax(1) == labels).mean()
        print(f"  {name:17} accuracy {accuracy:.3f}, scores differ from the device's by at most {difference:.1e}")
        assert difference < 1e-4
    print("host and device agree")


if __name__ == "__main__":
    main()
