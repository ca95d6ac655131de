"""Metrics on the command line: ``evaluate --metric`` and ``train --metric``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Command


def test_evaluate_prints_each_metric(edgepeft: Command, bundle: Path, data: Path) -> None:
    """The option may be repeated; classes and the confusion matrix have their names."""
    shown = edgepeft("evaluate", bundle, "--data", data, "--metric", "f1", "--metric", "confusion")
    assert shown.code == 0, shown.err
    assert "f1 0." in shown.out
    assert "  middle 0" in shown.out
    assert "true \\ predicted" in shown.out
    as_json = edgepeft("evaluate", bundle, "--data", data, "--metric", "recall@2", "--json")
    assert json.loads(as_json.out)["metrics"]["recall@2"]["greater_is_better"] is True


def test_train_keeps_the_best_adapter_by_a_metric(edgepeft: Command, bundle: Path, data: Path, tmp_path: Path) -> None:
    """Its value stands beside each epoch, and in the JSON."""
    update = tmp_path / "u.safetensors"
    common = ("train", bundle, "--data", data, "--validate", "0.3", "--update", update, "--metric", "f1")
    trained = edgepeft(*common)
    assert trained.code == 0, trained.err
    assert trained.out.count("  f1 ") == 4
    again = json.loads(edgepeft(*common, "--json").out)
    values = [record["held_out_metric"] for record in again["history"]]
    assert again["best"]["held_out_metric"] == max(values)


def test_unknown_and_unfit_metrics_are_refused(edgepeft: Command, bundle: Path, data: Path) -> None:
    """The unknown one before anything is opened."""
    unknown = edgepeft("evaluate", "nowhere", "--data", data, "--metric", "f2")
    assert unknown.code != 0
    assert "f2" in unknown.err
    assert "accuracy, auc" in unknown.err
    unfit = edgepeft("evaluate", bundle, "--data", data, "--metric", "mae")
    assert unfit.code != 0
    assert "wrong-metric" in unfit.err
