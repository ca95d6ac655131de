"""A table of numbers: malignant or benign, from scikit-learn's breast cancer data as ``.csv``, by the command.

The columns are standardized by the training data, classes weigh the same, and the AUC is that of PyTorch with the same
batches.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import beside
import network
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

EPOCHS, BATCH, LR = 10, 16, 1e-2


def main() -> None:
    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(data.target))
    train, test = order[:400], order[400:]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, rows in (("train", train), ("test", test)):
            write(work / f"{name}.csv", data, rows)
        source = f"{Path(__file__).with_name('network.py')}:make"
        columns = ["--label-column", "diagnosis"]
        edgepeft(
            "prepare", source, "--method", "full", "--classes", "malignant,benign", "--table", work / "train.csv",
            "--class-weights", "balanced", *columns, "--out", work / "bundle",
        )  # fmt: skip
        update = work / "update.safetensors"
        edgepeft(
            "train", work / "bundle", "--data", work / "train.csv", "--update", update, "--epochs", EPOCHS,
            "--batch-size", BATCH, "--lr", LR, *columns,
        )  # fmt: skip
        before, after = (evaluated(work, columns, options) for options in ([], ["--adapter", update]))
    print(f"{len(train)} rows to train on, {len(test)} held out, 30 columns")
    print(f"  AUC {before['auc']['value']:.3f} -> {after['auc']['value']:.4f}")
    beside.compared("AUC", after["auc"]["value"], torch_auc(data.data, data.target, train, test))


def write(path: Path, data: object, rows: np.ndarray) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "diagnosis"])
        for row in rows:
            writer.writerow([*data.data[row], data.target_names[data.target[row]]])


def edgepeft(*arguments: object) -> str:
    """Run the command."""
    words = [str(argument) for argument in arguments]
    print("$ edgepeft " + " ".join(Path(word).name if "/" in word else word for word in words), flush=True)
    return subprocess.run(
        [sys.executable, "-m", "edgepeft", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def evaluated(work: Path, columns: list[str], options: list[object]) -> dict[str, dict[str, float]]:
    printed = edgepeft(
        "evaluate", work / "bundle", "--data", work / "test.csv", "--metric", "auc", "--json", *columns, *options
    )
    metrics: dict[str, dict[str, float]] = json.loads(printed)["metrics"]
    return metrics


def torch_auc(values: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    model, _ = network.make()
    mean, std = values[train].mean(0), values[train].std(0)
    x = ((values - mean) / std).astype(np.float32)
    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(2), y=labels[train])).float()
    beside.train(
        model,
        lambda batch: nn.functional.cross_entropy(model(batch["x"]), batch["y"], weight),
        beside.batches({"x": x[train], "y": labels[train].astype(np.int64)}, BATCH, EPOCHS),
        LR,
    )
    with torch.no_grad():
        scores = model(torch.from_numpy(x[test])).softmax(1)[:, 1].numpy()
    return float(roc_auc_score(labels[test], scores))


if __name__ == "__main__":
    main()
