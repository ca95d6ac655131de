"""With --json, a command writes one JSON document to standard output, and nothing else."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgepeft.methods.registry import METHODS
from tests.cli.conftest import Command
from tests.support.bundles import Trained


def answer(edgepeft: Command, *arguments: object) -> Any:
    """Run a command with --json and return its document."""
    outcome = edgepeft(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_run_from_training_to_a_merged_model(edgepeft: Command, text: Trained, reviews: Path, tmp_path: Path) -> None:
    """Train, pull, aggregate and merge return what a script needs to go on."""
    update = tmp_path / "device" / "update.safetensors"
    update.parent.mkdir()
    trained = answer(edgepeft, "train", text.bundle, "--data", reviews, "--update", update, "--epochs", 2)
    assert (trained["update"], trained["steps"], trained["stopped"]) == (str(update), 16, "epochs")
    assert [epoch["epoch"] for epoch in trained["history"]] == [1, 2]
    assert trained["best"] is None
    pulled = answer(edgepeft, "pull", update.parent, "--into", tmp_path / "kept", "--bundle", text.bundle)
    assert [received["source"] for received in pulled["accepted"]] == [str(update)]
    assert pulled["refused"] == []
    combined = tmp_path / "round.safetensors"
    report = answer(edgepeft, "aggregate", tmp_path / "kept", "--bundle", text.bundle, "--out", combined)
    assert [counted["sha256"] for counted in report["updates"]] == [sha256(update.read_bytes()).hexdigest()]
    merged = answer(edgepeft, "merge", text.bundle, combined, "--to", "onnx", "--out", tmp_path / "model.onnx")
    assert "4 LoRA pairs folded" in " ".join(merged["notes"])


def test_a_refused_update_is_in_the_document(edgepeft: Command, text: Trained, images: Trained, tmp_path: Path) -> None:
    """Its code and reason are fields."""
    pulled = answer(edgepeft, "pull", images.update.parent, "--into", tmp_path / "kept", "--bundle", text.bundle)
    assert {refusal["code"] for refusal in pulled["refused"]} == {"foreign-update"}


def test_a_profile_as_document_table_and_page(edgepeft: Command, text: Trained, reviews: Path, tmp_path: Path) -> None:
    """The same profile in three forms; the page is written before the answer."""
    page = tmp_path / "profile.html"
    arguments = ("profile", text.bundle, "--data", reviews, "--steps", 2, "--batch-size", 2)
    found = answer(edgepeft, *arguments, "--html", page)
    assert found["sizes"]["batch"] == 2 and found["steps"] == 2
    assert any(row["name"].startswith("bert.encoder.layer.0.attention") for row in found["modules"])
    assert page.read_text("utf-8").startswith("<!doctype html>")
    outcome = edgepeft(*arguments, "--html", page)
    assert "a step takes" in outcome.out and f"page: {page}" in outcome.out
    refused = edgepeft(*arguments, "--html", tmp_path)
    assert refused.code == 1 and "not-a-regular-file" in refused.err


def test_methods_with_their_settings(edgepeft: Command) -> None:
    """Every method is listed, with the default of each setting."""
    methods = answer(edgepeft, "methods")
    assert list(methods) == list(METHODS)
    assert methods["lora"]["settings"]["rank"]["default"] == METHODS["lora"].defaults()["rank"]


SOURCE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4)
"""


def test_doctor_and_prepare(edgepeft: Command, tmp_path: Path) -> None:
    """What would train, and what was written."""
    (tmp_path / "net.py").write_text(SOURCE)
    source = f"{tmp_path / 'net.py'}:make"
    options = (source, "--method", "freeze", "--train", "2.bias", "--loss", "cross_entropy")
    assert answer(edgepeft, "doctor", *options) == {"trainable": {"2.bias": [2]}, "missing_rules": []}
    prepared = answer(edgepeft, "prepare", *options, "--out", tmp_path / "bundle")
    assert (prepared["trainable"], prepared["bundle"]) == (2, str(tmp_path / "bundle"))
    assert prepared["bytes"] == sum(file.stat().st_size for file in (tmp_path / "bundle").rglob("*") if file.is_file())
