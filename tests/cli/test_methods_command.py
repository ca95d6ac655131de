"""Methods by the command: their settings as text, which fit a model, selection on the workstation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgepeft.methods.registry import METHODS
from edgepeft_runtime.bundle.bundle import Bundle
from tests.cli.conftest import Command

SOURCE = """
import torch
from torch import nn
import edgepeft

def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    return edgepeft.Source(model, {"input": torch.zeros(2, 8)}, loss="cross_entropy")
"""


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A small network, as a function in a file."""
    (tmp_path / "network.py").write_text(SOURCE)
    return f"{tmp_path / 'network.py'}:make"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty labelled rows."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 8)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", input=x, labels=x[:, :3].argmax(1))
    return tmp_path / "rows.npz"


def test_every_method_is_listed_with_its_settings(edgepeft: Command) -> None:
    """Names, purposes, and settings with their defaults."""
    done = edgepeft("methods")
    assert done.code == 0
    assert [line.partition(":")[0] for line in done.out.splitlines() if not line.startswith(" ")] == list(METHODS)
    assert "--rate                 Fraction of the elements" in done.out
    assert "default: 0.01; above 0, at most 1" in done.out


def test_settings_are_given_as_text(edgepeft: Command, network: str, tmp_path: Path) -> None:
    """A rate and patterns reach the method; the bundle's provenance says so."""
    options = ["--rate", 0.1, "--weight-names", "0,2", "--gradient-fraction", 0.5]
    done = edgepeft("prepare", network, "--method", "sift", *options, "--out", tmp_path / "b")
    assert done.code == 0, done.err
    manifest = Bundle.open(tmp_path / "b").manifest
    provenance = manifest.provenance
    assert (provenance["method"], provenance["rate"], provenance["weights"]) == ("sift", 0.1, ["0", "2"])
    assert manifest.optimizer.settings["gradient_fraction"] == 0.5
    assert {spec.name.partition(".")[0] for spec in manifest.optimizer.state} == {"exp_avg", "exp_avg_sq", "residual"}


@pytest.mark.parametrize(
    ("option", "value", "code", "word"),
    [
        ("--rate", "much", 2, "not a valid float"),
        ("--rate", 7, 1, "out of range"),
        ("--rank", 7, 2, f"a method that has it: {', '.join(METHODS.having('rank'))}"),
    ],
)
def test_a_wrong_setting_is_an_error(
    option: str, value: object, code: int, word: str, edgepeft: Command, network: str, tmp_path: Path
) -> None:
    """The error names the problem, and no file remains."""
    done = edgepeft("prepare", network, "--method", "sift", option, value, "--out", tmp_path / "b")
    assert (done.code, word in done.err) == (code, True), done.err
    assert not (tmp_path / "b").exists()


def test_doctor_lists_which_methods_fit(edgepeft: Command, network: str) -> None:
    """A line per method: how much would train, or why it does not fit."""
    done = edgepeft("doctor", network, "--methods")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert lines.keys() == METHODS.keys()
    assert lines["bitfit"].split()[1] == "35"
    assert "needs the parameters that train" in lines["freeze"]


def test_elements_are_picked_on_the_workstation(edgepeft: Command, network: str, data: Path, tmp_path: Path) -> None:
    """Elements are selected once; then devices train them."""
    bundle = tmp_path / "b"
    assert edgepeft("prepare", network, "--method", "sift", "--rate", 0.1, "--out", bundle).code == 0
    before = json.loads(edgepeft("evaluate", bundle, "--data", data, "--json").out)["loss"]
    assert edgepeft("pick", bundle, "--data", data).code == 0
    assert Bundle.open(bundle).manifest.sparse[0].gradient is None
    again = edgepeft("pick", bundle, "--data", data)
    assert (again.code, "has no elements to pick" in again.err) == (1, True)
    update = tmp_path / "u.safetensors"
    train = ["train", bundle, "--data", data, "--state", tmp_path / "state", "--epochs", 3, "--update", update]
    assert edgepeft(*train, "--lr", 0.05).code == 0
    after = json.loads(edgepeft("evaluate", bundle, "--data", data, "--adapter", update, "--json").out)["loss"]
    assert after < before


def test_a_sum_of_losses_is_a_loss_of_the_command(edgepeft: Command, network: str, tmp_path: Path) -> None:
    """The loss of one output twice; a misspelt term is answered with the name that was meant."""
    sums = "cross_entropy(output) + 0.3 * focal(output, label=kind)"
    done = edgepeft("prepare", network, "--method", "full", "--loss", sums, "--out", tmp_path / "b")
    assert done.code == 0, done.err
    assert [label.name for label in Bundle.open(tmp_path / "b").manifest.labels] == ["output_labels", "kind"]
    wrong = edgepeft("prepare", network, "--loss", "cross_entropi(output)", "--out", tmp_path / "c")
    assert wrong.code == 1 and "did you mean 'cross_entropy'?" in wrong.err
