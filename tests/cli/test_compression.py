"""Quantizing a model's frozen weights from the command line, and the messages about it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Command
from tests.support.bundles import Trained

SOURCE = """
import torch
def make():
    torch.manual_seed(0)
    Linear = torch.nn.Linear
    model = torch.nn.Sequential(Linear(64, 96), torch.nn.Tanh(), Linear(96, 64), Linear(64, 3))
    with torch.no_grad():
        model[2].weight[:, 0] *= 3000
        model[0].weight[0] = 0
    return model, {'input': torch.zeros(2, 64)}
"""


@pytest.fixture
def network(tmp_path: Path) -> str:
    (tmp_path / "network.py").write_text(SOURCE)
    return f"{tmp_path / 'network.py'}:make"


def test_a_model_is_quantized_trained_merged_and_inspected(edgepeft: Command, network: str, tmp_path: Path) -> None:
    """int8 by one option: the bundle is smaller, trains, merges, and describes each tensor."""
    draw = np.random.default_rng(0)
    data, bundle = tmp_path / "d.npz", tmp_path / "b"
    np.savez(data, input=draw.normal(size=(32, 64)).astype(np.float32), labels=draw.integers(0, 3, 32))
    made = edgepeft("prepare", network, "--train", "3", "--compute", "int8", "--out", bundle)
    assert made.code == 0
    facts = json.loads(edgepeft("inspect", bundle, "--json").out)
    assert facts["quantized_bytes"] == 64 * 96 * 2
    assert facts["quantized_bytes_as_fp32"] == 4 * facts["quantized_bytes"]
    shown = edgepeft("inspect", bundle, "--tensors").out
    assert "quantized  12.3 kB, as fp32 49.2 kB" in shown
    assert "6.1 kB   24.6 kB 0.weight.int8 int8[96, 64]" in shown
    update = tmp_path / "u.safetensors"
    trained = edgepeft("train", bundle, "--data", data, "--state", tmp_path / "s", "--epochs", 1, "--update", update)
    assert trained.code == 0
    merge = ["merge", bundle, update, "--to", "onnx", "--out"]
    assert edgepeft(*merge, tmp_path / "m.onnx").code == 0
    unpacked = edgepeft(*merge, tmp_path / "fp32.onnx", "--quantized", "dequantize", "--data", data)
    assert (unpacked.code, "relative error to the device's outputs: 0.0" in unpacked.out) == (0, True)
    assert (tmp_path / "fp32.onnx").stat().st_size > 4 * 64 * 96 * 2 > (tmp_path / "m.onnx").stat().st_size


def test_calibration_keeps_the_weight_that_rounding_harms(edgepeft: Command, network: str, tmp_path: Path) -> None:
    """--calibrate reads data like training. Weights that stay fp32 are listed with the reason, also in the bundle."""
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", input=draw.normal(size=(32, 64)).astype(np.float32), labels=np.zeros(32, np.int64))
    options = ["--train", "3", "--compute", "int8", "--tolerance", 0.01, "--calibrate", tmp_path / "d.npz"]
    made = edgepeft("prepare", network, *options, "--out", tmp_path / "b")
    assert made.code == 0
    assert "2.weight stays fp32: relative error" in made.err
    assert json.loads(edgepeft("inspect", tmp_path / "b", "--json").out)["manifest"]["provenance"]["kept"] == [
        "2.weight"
    ]
    missing = edgepeft("prepare", network, *options[:-1], tmp_path / "nowhere.npz", "--out", tmp_path / "c")
    assert (missing.code, (tmp_path / "c").exists()) == (1, False)
    assert "no-such-data" in missing.err


def test_heads_and_neurons_are_pruned_by_one_option(edgepeft: Command, text: Trained, tmp_path: Path) -> None:
    """--prune cuts before LoRA is attached; the provenance records it; fractions out of range are refused."""
    options = ["prepare", text.model, "--task", "text-classification", "--classes", "no,yes", "--method", "lora"]
    assert edgepeft(*options, "--out", tmp_path / "whole").code == 0
    assert edgepeft(*options, "--prune", "heads=0.5,ffn=0.25", "--out", tmp_path / "cut").code == 0
    whole, cut = (json.loads(edgepeft("inspect", tmp_path / name, "--json").out) for name in ("whole", "cut"))
    # Of each of two layers: half of query, key, value and output, a quarter of both feed-forward matrices, biases too.
    gone = 2 * (4 * 32 * 16 + 3 * 16 + 2 * 32 * 16 + 16)
    kept = {name: found["frozen_bytes"] + found["trainable_bytes"] for name, found in (("w", whole), ("c", cut))}
    assert 4 * 0.8 * gone < kept["w"] - kept["c"] < 4 * 1.2 * gone  # small tensors are in the graphs
    assert cut["manifest"]["provenance"]["prune"] == {"heads": 0.5, "ffn": 0.25}
    refused = edgepeft(*options, "--prune", "heads=1.5", "--out", tmp_path / "more")
    assert refused.code == 1
    assert "heads" in refused.err


def test_a_budget_decides_how_a_device_trains(edgepeft: Command, network: str, tmp_path: Path) -> None:
    """--memory-budget is stored in the bundle, train obeys it, and inspect predicts the memory."""
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", input=draw.normal(size=(32, 64)).astype(np.float32), labels=draw.integers(0, 3, 32))
    options = ["prepare", network, "--train", "3", "--out", tmp_path / "b"]
    made = edgepeft(*options, "--memory-budget", "4GB", "--sizes", "batch=4")
    assert made.code == 0
    assert "4 examples at a time, one graph" in made.err
    train = ["train", tmp_path / "b", "--data", tmp_path / "d.npz", "--epochs", 1, "--batch-size", 16]
    trained = edgepeft(*train, "--state", tmp_path / "s", "--update", tmp_path / "u")
    assert "2 steps, 32 examples" in trained.out
    seen = json.loads(edgepeft("inspect", tmp_path / "b", "--sizes", "batch=64", "--json").out)
    assert 20e6 < seen["resident_bytes"] < seen["anonymous_bytes"] < 4e9
    shown = edgepeft("inspect", tmp_path / "b", "--sizes", "batch=64").out
    assert "of anonymous memory at its peak, at batch 64" in shown
    refused = edgepeft(*options, "--overwrite", "--memory-budget", "1MB", "--sizes", "batch=4")
    assert refused.code == 1
    assert "memory-budget" in refused.err
    assert edgepeft("inspect", tmp_path / "b", "--sizes", "rows=1").code == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--memory-budget", "much"], "'much' is not like 256MB"),
        (["--memory-budget", "1MB", "--sizes", "batch"], "'batch' is not like batch=8,sequence=64"),
        (["--block-size", "64"], "--block-size cannot be used with --compute fp32"),
        (["--gradient-rounding", "row"], "--gradient-rounding cannot be used with --compute fp32"),
        (["--keep-fp32", "x"], "--keep-fp32 requires --compute int8"),
        (["--compute", "int2"], "int2"),
    ],
)
def test_options_of_another_way_of_packing_are_refused(edgepeft: Command, options: list[str], word: str) -> None:
    """With the exit code of wrong usage, before anything is read."""
    outcome = edgepeft("prepare", "m", "--out", "b", *options)
    assert outcome.code == 2
    assert word in outcome.err
