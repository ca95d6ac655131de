"""Columns of a table by their names, standardized as the training data was, wherever the bundle goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

import edgepeft
from edgepeft.cli.app import run
from edgepeft.data import load, standardization
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import TableSpec
from edgepeft_runtime.errors import BundleError, DataError

TRAINING = "height,label,weight,same\n170,0,60,5\n180,1,80,5\n160,0,70,5\n"
NETWORK = "import torch\ndef make():\n    return torch.nn.Linear(3, 2), torch.zeros(2, 3)\n"


def _rows(text: str) -> np.ndarray:
    return np.array([[float(row.split(",")[at]) for at in (0, 2, 3)] for row in text.splitlines()[1:]])


def _prepared(tmp_path: Path) -> Bundle:
    (tmp_path / "train.csv").write_text(TRAINING)
    table = standardization(tmp_path / "train.csv")
    edgepeft.prepare(
        nn.Linear(3, 2),
        torch.zeros(2, 3),
        method="full",
        preprocessing=edgepeft.Preprocessing(table=table),
        out=tmp_path / "b",
    )
    return Bundle.open(tmp_path / "b")


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
def test_columns_are_standardized_as_by_scikit_learn(tmp_path: Path) -> None:
    """Other data has the training data's means and deviations, in any order of columns, with further ones."""
    bundle = _prepared(tmp_path)
    (tmp_path / "new.csv").write_text("same,id,weight,label,height\n6,x,90,1,150\n")
    scaler = StandardScaler().fit(_rows(TRAINING))
    batch = load(tmp_path / "new.csv", bundle).batch(np.array([0]))
    np.testing.assert_allclose(batch["input"], scaler.transform([[150.0, 90.0, 6.0]]), rtol=1e-6)
    own = load(tmp_path / "train.csv", bundle).batch(np.arange(3))
    np.testing.assert_allclose(own["input"], scaler.transform(_rows(TRAINING)), rtol=1e-6, atol=1e-7)


def test_what_the_columns_lack_is_said(tmp_path: Path) -> None:
    """A column with one value is centered only, and one that is not used is named."""
    with pytest.warns(UserWarning, match="columns with one value are centered only: same"):
        bundle = _prepared(tmp_path)
    (tmp_path / "new.csv").write_text("same,id,weight,label,height\n6,x,90,1,150\n")
    with pytest.warns(UserWarning, match="not used: id"):
        load(tmp_path / "new.csv", bundle)


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("height,weight,label\n1,2,0\n", ["same"]),
        ("height,weight,same,label\n1,,5,0\n", ["line 2", "missing", "'weight'", "fill in"]),
        ("height,weight,same,label\n1,NA,5,0\n", ["line 2", "missing", "'weight'"]),
        (
            "height,weight,same,label\n1,2,5,0\n1,heavy,5,0\n",
            ["line 3", "'weight'", "'heavy'", "one column of 0 and 1"],
        ),
        ("height,weight,same,label\n1,2kg,5,0\n", ["line 2", "'2kg'", "decimal point"]),
    ],
)
def test_a_cell_that_is_no_number_is_refused(tmp_path: Path, content: str, words: list[str]) -> None:
    """With row and column; a category is told apart from a missing value."""
    bundle = _prepared(tmp_path)
    (tmp_path / "new.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "new.csv", bundle)
    text = f"{caught.value} {caught.value.context} {caught.value.hint}"
    assert all(word in text for word in words), text


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
def test_the_command_standardizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--table`` at prepare; train and evaluate read the same input."""
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "train.csv").write_text(TRAINING)
    source, data = f"{tmp_path / 'network.py'}:make", str(tmp_path / "train.csv")
    assert run(["prepare", source, "--method", "full", "--table", data, "--out", str(tmp_path / "b")]) == 0
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.table is not None and manifest.table.columns == ("height", "weight", "same")
    assert manifest == type(manifest).from_json(manifest.to_json())
    update = str(tmp_path / "u.safetensors")
    training = ["--epochs", "200", "--lr", "0.1", "--batch-size", "3"]
    assert run(["train", str(tmp_path / "b"), "--data", data, "--update", update, *training]) == 0
    assert run(["evaluate", str(tmp_path / "b"), "--data", data, "--adapter", update]) == 0
    assert "accuracy 100" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
@pytest.mark.parametrize(
    "change",
    [
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, 1.0)},
        {"columns": ("a", "b")},
        {"columns": ("a", "a", "b")},
        {"columns": ("a", "b"), "mean": (0.0, 0.0), "std": (1.0, 1.0)},
    ],
)
def test_a_manifest_with_another_table_is_refused(tmp_path: Path, change: dict[str, tuple[object, ...]]) -> None:
    """Columns, means and deviations of other numbers than the input, and a deviation of 0."""
    manifest = _prepared(tmp_path).manifest
    assert isinstance(manifest.table, TableSpec)
    with pytest.raises(BundleError) as caught:
        replace(manifest, table=replace(manifest.table, **change))
    assert caught.value.code == "bad-manifest"


def test_a_frame_of_columns_is_a_table(tmp_path: Path) -> None:
    """As a dict of columns; and Parquet, where pyarrow is."""
    columns = {"a": [1.0, 3.0], "b": [0.0, 4.0], "label": [0, 1]}
    table = standardization(columns)
    assert table == TableSpec(("a", "b"), (2.0, 2.0), (1.0, 2.0))
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    assert standardization(tmp_path / "d.parquet") == table
    network = nn.Linear(2, 2)
    edgepeft.prepare(
        network,
        torch.zeros(2, 2),
        method="full",
        preprocessing=edgepeft.Preprocessing(table=table),
        out=tmp_path / "b",
    )
    with Trainer.open(tmp_path / "b") as trainer:
        data = load(tmp_path / "d.parquet", trainer.bundle)
        np.testing.assert_allclose(data.batch(np.arange(2))["input"], [[-1, -1], [1, 1]])
        assert np.isfinite(trainer.evaluate(data).loss)
    missing = pyarrow.table({"a": [1.0, None], "b": [0.0, 4.0], "label": [0, 1]})
    pytest.importorskip("pyarrow.parquet").write_table(missing, tmp_path / "m.parquet")
    with pytest.raises(DataError, match="row 2: A value is missing"):
        standardization(tmp_path / "m.parquet")
