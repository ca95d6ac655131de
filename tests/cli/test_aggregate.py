"""``edgepeft aggregate`` as a user calls it: a round and the next one, the acceptance check, refused updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.tensorfile import sha256_of
from tests.cli.conftest import Command
from tests.support.bundles import Trained
from tests.support.simulated_devices import drifted, send


@pytest.fixture
def updates(text: Trained, tmp_path: Path) -> Path:
    """Six devices, one of them far off, one file twice, one damaged."""
    bundle, folder = Bundle.open(text.bundle), tmp_path / "updates"
    fleet = drifted(bundle, 5, 0.02) + drifted(bundle, 1, 5.0, 1)
    paths = send(bundle, fleet, folder)
    shutil.copy(paths[0], folder / "again.safetensors")
    (folder / "cut.safetensors").write_bytes(paths[1].read_bytes()[:100])
    return folder


def test_two_rounds(edgepeft: Command, text: Trained, updates: Path, reviews: Path, tmp_path: Path) -> None:
    """Aggregate, train from the aggregate, aggregate that: each file names its sources."""
    first, second = tmp_path / "round1.safetensors", tmp_path / "round2.safetensors"
    done = edgepeft("aggregate", updates, "--bundle", text.bundle, "--out", first, "--clip", 1)
    assert done.code == 0
    assert "6 updates, 1 duplicates, 1 refused, 1 clipped" in done.out
    assert "merge error: " in done.out
    assert "refused cut.safetensors (truncated-tensor-file)" in done.err
    report = json.loads(first.with_suffix(".json").read_text("utf-8"))
    assert (report["sha256"], len(report["updates"]), report["clip"]) == (sha256_of(first), 6, 1.0)
    (tmp_path / "later").mkdir()
    train = ["train", text.bundle, "--data", reviews, "--state", tmp_path / "state", "--epochs", 1]
    update = tmp_path / "later" / "update.safetensors"
    assert edgepeft(*train, "--adapter", first, "--update", update).code == 0
    again = ["aggregate", tmp_path / "later", "--bundle", text.bundle, "--out", second]
    stale = edgepeft(*again)
    assert (stale.code, "no-updates" in stale.err, "stale-update" in stale.err) == (1, True, True)
    assert edgepeft(*again, "--adapter", first).code == 0
    found = edgepeft("merge", text.bundle, second, "--to", "onnx", "--out", tmp_path / "model.onnx")
    assert "4 LoRA pairs folded" in found.out


def test_a_failed_acceptance_check_writes_only_a_report(
    edgepeft: Command, text: Trained, updates: Path, reviews: Path, tmp_path: Path
) -> None:
    """A round that raises held-out loss exits with 1; without --acceptance-check it is written."""
    with_data = ["aggregate", updates, "--bundle", text.bundle, "--data", reviews, "--out"]
    refused = edgepeft(*with_data, tmp_path / "a.safetensors", "--acceptance-check")
    assert (refused.code, "worse-than-before" in refused.err) == (1, True)
    assert not (tmp_path / "a.safetensors").exists()
    report = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert report["held_out"]["accepted"] is False
    assert report["held_out"]["after"]["loss"] > report["held_out"]["before"]["loss"]
    written = edgepeft(*with_data, tmp_path / "b.safetensors")
    assert (written.code, "held out: loss" in written.out) == (0, True)
    assert (tmp_path / "b.safetensors").exists()


def test_robust_and_private_rounds(edgepeft: Command, text: Trained, updates: Path, tmp_path: Path) -> None:
    """Skipped updates and the privacy spent are printed and written into the report."""
    command = ["aggregate", updates, "--bundle", text.bundle, "--out", tmp_path / "round.safetensors"]
    trimmed = edgepeft(*command, "--robust", "trimmed-mean=0.2")
    assert "trimmed-mean: 1 of 6 values left out at either end" in trimmed.out
    private = edgepeft(*command, "--clip", 1, "--dp-noise", 1.5, "--dp-rounds", 3)
    assert "privacy: epsilon " in private.out
    report = json.loads((tmp_path / "round.json").read_text("utf-8"))
    assert (report["privacy"]["noise"], report["privacy"]["rounds"], report["privacy"]["delta"]) == (1.5, 3, 1e-5)


def test_a_small_fleet_is_warned(edgepeft: Command, text: Trained, tmp_path: Path) -> None:
    """A median of three is accepted, with a warning about its robustness."""
    bundle = Bundle.open(text.bundle)
    send(bundle, drifted(bundle, 3), tmp_path / "updates")
    command = ["aggregate", tmp_path / "updates", "--bundle", text.bundle, "--robust", "median"]
    done = edgepeft(*command, "--out", tmp_path / "round.safetensors")
    assert (done.code, "fewer than five devices" in done.err) == (0, True)


@pytest.mark.parametrize(
    ("more", "reference"),
    [
        (["--out", "round.onnx"], "wrong-suffix"),
        (["--out", "updates/round.safetensors"], "target-among-updates"),
        (["--out", "round.safetensors", "--robust", "krum"], "bad-setting"),
        (["--out", "round.safetensors", "--dp-noise", "1"], "contradicting-settings"),
        (["--out", "round.safetensors", "--rule", "ffa"], "no-updates"),
        (["--out", "round.safetensors", "--rule", "stack", "--data", "x.csv"], "stack-cannot-be-evaluated"),
    ],
)
def test_what_cannot_be_done_is_said(
    edgepeft: Command,
    text: Trained,
    updates: Path,
    more: list[str],
    reference: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line names the kind of error, nothing is written, and the code is 1."""
    monkeypatch.chdir(tmp_path)
    done = edgepeft("aggregate", updates.name, "--bundle", text.bundle, *more)
    assert (done.code, f"error: {reference}\n" in done.err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["updates"]
