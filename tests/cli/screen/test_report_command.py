"""``edgepeft report``: the figures of a run, and a page of its own."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.support.bundles import Trained


@pytest.fixture(scope="module")
def run(text: Trained, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with held-out data, chosen by F1."""
    from edgepeft.data import load, split
    from edgepeft_runtime import Trainer

    state = tmp_path_factory.mktemp("runs") / "reviews.state"
    train, held_out = split(load(reviews, text.bundle), 0.2, 0)
    with Trainer.open(text.bundle, state=state) as trainer:
        trainer.fit(train, epochs=3, lr=0.01, validate=held_out, metric="f1")
    return state


def test_the_page_has_curves_matrix_layers_and_what_was_kept(
    edgepeft: Command, run: Path, text: Trained, reviews: Path, tmp_path: Path
) -> None:
    """Well-formed, without an address of another file; each curve has a point per epoch."""
    page = tmp_path / "report.html"
    arguments = ("--bundle", text.bundle, "--data", reviews, "--profile", 2, "--html", page)
    outcome = edgepeft("report", run, *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("<- kept") == 1 and f"page: {page}" in outcome.out
    content = page.read_text("utf-8")
    assert "prefers-color-scheme: dark" in content and "http" not in content.replace("http-equiv", "")
    root = xml.fromstring(content.removeprefix("<!doctype html>\n"))
    headings = [heading.text for heading in root.iter("h2")]
    assert headings[:2] == ["Loss", "Held out accuracy"]
    assert {"F1", "Epochs", "Settings", "Confusion matrix", "Time by layer", "Memory of a step"} <= set(headings)
    assert headings[-1] == "What was kept"
    losses = next(svg for svg in root.iter("svg") if "loss" in svg.get("aria-label", ""))
    titles = [title.text for title in losses.iter("title")]
    held_out = [title for title in titles if title and title.startswith("held out loss")]
    assert len(held_out) == 4 and held_out[0].startswith("held out loss, epoch 0")
    assert sum(title.startswith("loss, epoch") for title in titles if title) == 3
    assert sum("(kept)" in title for title in titles if title) >= 1
    assert "bert.encoder.layer.0.attention.self.query" in content


def test_a_state_alone_is_enough(edgepeft: Command, run: Path, tmp_path: Path) -> None:
    """Curves and settings, also while another process trains; the document has the history."""
    assert edgepeft("report", run, "--html", tmp_path / "r.html").code == 0
    assert "Confusion" not in (tmp_path / "r.html").read_text("utf-8")
    document = json.loads(edgepeft("report", run, "--json").out)
    (fit,) = document["run"]["fits"]
    assert [record["epoch"] for record in fit["history"]] == [0, 1, 2, 3]
    assert fit["settings"]["metric"] == "f1"


def test_what_is_no_run_is_refused(edgepeft: Command, run: Path, reviews: Path, tmp_path: Path) -> None:
    """A misspelt path is suggested; data needs the bundle."""
    assert str(run) in edgepeft("report", run.with_name("reviws.state")).err
    assert edgepeft("report", tmp_path).code == 1
    assert edgepeft("report", run, "--data", reviews).code == 2
