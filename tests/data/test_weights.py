"""Weights of examples: a column, or counted so that each class weighs the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

import edgepeft
from edgepeft.cli.app import run
from edgepeft.data import load
from edgepeft.data.tables.weights import class_weights
from edgepeft_export.losses import CrossEntropy
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import ImageSpec
from edgepeft_runtime.errors import DataError

ROWS = [(0.1, 0.2, 0), (0.3, -0.1, 0), (1.0, 2.0, 0), (0.5, 0.5, 2)]
NETWORK = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3), torch.zeros(2, 2)
"""


def _table(path: Path, weights: list[object] | None = None) -> Path:
    names = "a,b,label" + (",w" if weights else "")
    lines = [",".join(map(str, (*row, *([weights[at]] if weights else [])))) for at, row in enumerate(ROWS)]
    path.write_text("\n".join([names, *lines]) + "\n")
    return path


def _prepared(name: str, out: Path) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Linear(2, 3)
    edgepeft.prepare(network, torch.zeros(2, 2), method="full", loss=CrossEntropy(example_weights=name), out=out)
    return network


def _expected(network: nn.Module, weights: list[float]) -> float:
    x = torch.tensor([row[:2] for row in ROWS])
    each = functional.cross_entropy(network(x), torch.tensor([row[2] for row in ROWS]), reduction="none")
    return float((each * torch.tensor(weights)).sum() / sum(weights))


def test_weights_of_classes_are_those_of_scikit_learn() -> None:
    """Inverse to the counts; a class that does not occur has the weight 1, and ignored labels do not count."""
    labels = np.array([0, 0, 0, 2, 2, 1, 0, -100])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels[:-1])
    np.testing.assert_allclose(class_weights(labels, 3, -100), expected)
    assert class_weights(np.array([0, 2]), 3).tolist() == [1.0, 1.0, 1.0]


def test_a_column_has_the_weights(tmp_path: Path) -> None:
    """A table's column of the label's name, for training and evaluation; it is no feature."""
    network = _prepared("w", tmp_path / "b")
    weights = [1.0, 0.0, 2.5, 1.0]
    data = load(_table(tmp_path / "d.csv", [*weights]), tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        assert trainer.evaluate(data).loss == pytest.approx(_expected(network, weights), rel=1e-5)
        assert trainer.fit(data, epochs=1).steps == 1


@pytest.mark.parametrize("weights", [None, [1, -1, 1, 1], [1, "x", 1, 1], [1, "", 1, 1]])
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: list[object] | None) -> None:
    """A missing column, a negative number, a text and an empty cell."""
    _prepared("w", tmp_path / "b")
    with pytest.raises(DataError, match="weight"):
        load(_table(tmp_path / "d.csv", weights), tmp_path / "b")


def test_balanced_weights_are_counted_on_the_device(tmp_path: Path) -> None:
    """From the data at hand: each of the two classes that occur has half of the weight."""
    network = _prepared("balanced", tmp_path / "b")
    with pytest.warns(UserWarning, match="weights of classes: 0 0.667, 1 1, 2 2"):
        data = load(_table(tmp_path / "d.csv"), tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        expected = _expected(network, [2 / 3, 2 / 3, 2 / 3, 2.0])
        assert trainer.evaluate(data).loss == pytest.approx(expected, rel=1e-5)


def test_images_of_folders_are_counted(tmp_path: Path) -> None:
    """A folder of three images weighs as much as one of one image."""
    image = ImageSpec("input", (4, 4), 1, (0.5,), (0.5,))
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    loss = CrossEntropy(example_weights="balanced")
    edgepeft.prepare(
        network,
        torch.zeros(2, 1, 4, 4),
        method="full",
        loss=loss,
        classes=("x", "y"),
        preprocessing=edgepeft.Preprocessing(image=image),
        out=tmp_path / "b",
    )
    for name, count in (("x", 3), ("y", 1)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (4, 4), 60 * index).save(tmp_path / "d" / name / f"{index}.png")
    batch = load(tmp_path / "d", Bundle.open(tmp_path / "b")).batch(np.arange(4))
    np.testing.assert_allclose(batch["balanced"], [2 / 3, 2 / 3, 2 / 3, 2.0], rtol=1e-6)


def test_the_command_weighs_positive_labels(tmp_path: Path) -> None:
    """``--pos-weight balanced``: negatives / positives of each label; without data to count in, it is refused."""
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "d.csv").write_text('a,b,label\n1,2,"1,0,0"\n2,1,"0,0,0"\n0,0,"0,1,0"\n1,1,"1,0,0"\n1,0,"1,1,0"\n')
    options = [
        "--method",
        "full",
        "--loss",
        "bce_with_logits",
        "--pos-weight",
        "balanced",
        "--out",
        str(tmp_path / "b"),
    ]
    source = f"{tmp_path / 'network.py'}:make"
    assert run(["prepare", source, *options]) == 2
    assert run(["prepare", source, *options, "--calibrate", str(tmp_path / "d.csv")]) == 0
    weights = Bundle.open(tmp_path / "b").manifest.loss.settings["pos_weight"]
    assert weights == pytest.approx([2 / 3, 3 / 2, 1.0])


@pytest.mark.parametrize("where", ["workstation", "device", "list", "file"])
def test_the_command_weighs_classes(tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--class-weights``: counted here, or on the device, or given as numbers or in a file."""
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "weights.txt").write_text("0.5\n1\n2\n")
    data = _table(tmp_path / "d.csv")
    options = {
        "workstation": ["balanced", "--calibrate", str(data)],
        "device": ["balanced"],
        "list": ["0.5,1,2"],
        "file": [str(tmp_path / "weights.txt")],
    }
    source = [f"{tmp_path / 'network.py'}:make", "--method", "full", "--loss", "cross_entropy"]
    assert run(["prepare", *source, "--class-weights", *options[where], "--out", str(tmp_path / "b")]) == 0
    settings = Bundle.open(tmp_path / "b").manifest.loss.settings
    counted = [2 / 3, 1.0, 2.0]
    if where == "device":
        assert settings["example_weights"] == "balanced" and "class_weights" not in settings
    else:
        assert settings["class_weights"] == pytest.approx(counted if where == "workstation" else [0.5, 1, 2])
    assert run(["evaluate", str(tmp_path / "b"), "--data", str(data)]) == 0
    torch.manual_seed(0)
    weights = [0.5, 0.5, 0.5, 2.0] if where in ("list", "file") else [2 / 3, 2 / 3, 2 / 3, 2.0]
    assert f"loss {_expected(nn.Linear(2, 3), weights):.4g}" in capsys.readouterr().out
