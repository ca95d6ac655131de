"""What notebooks show of reports and bundles, and reports as data frames and pictures."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgepeft_runtime import Bundle, Evaluation, FitReport, Trainer
from edgepeft_runtime.metrics.base import Score
from tests.support.tiny_bundle import examples

DATA, HELD_OUT = examples(45), examples(30, seed=1)


class Cells(HTMLParser):
    """The texts of a page; its tags are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  (the signature is the parser's)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def report(bundle: Path) -> FitReport:
    """Three epochs with held-out data."""
    with Trainer.open(bundle) as trainer:
        return trainer.fit(DATA, epochs=3, validate=HELD_OUT)


def test_notebooks_show_tables(bundle: Path, report: FitReport) -> None:
    """A row per epoch, the confusion matrix, and what a bundle trains; nothing but text and tags."""
    cells = Cells(report._repr_html_()).texts
    assert cells[:4] == ["epoch", "loss", "held out loss", "held out accuracy"]
    assert f"{report.history[2].held_out_loss:.4g}" in cells and cells.count("kept") == 1
    with Trainer.open(bundle) as trainer:
        evaluation = trainer.evaluate(HELD_OUT, metrics=["f1", "confusion"])
    assert {"30 examples", "accuracy", "f1", "true \\ predicted"} <= set(Cells(evaluation._repr_html_()).texts)
    opened = Bundle.open(bundle)
    assert "22 elements in 3 tensors" in Cells(opened._repr_html_()).texts
    assert "x float32 [batch, 4]" in Cells(opened.manifest._repr_html_()).texts


def test_a_report_is_a_data_frame(report: FitReport) -> None:
    """A row per epoch, by its number."""
    pytest.importorskip("pandas")
    frame = report.to_frame()
    assert list(frame.index) == [0, 1, 2, 3]
    assert frame["held_out_loss"].tolist() == [record.held_out_loss for record in report.history]


def test_a_report_is_drawn(report: FitReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both losses over the epochs, and the accuracy on an axis of its own."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    axes = report.plot()
    assert [line.get_label() for line in axes.lines] == ["loss", "held out loss"]
    assert list(axes.lines[1].get_ydata()) == [record.held_out_loss for record in report.history]
    assert len(axes.figure.axes) == 2
    lines = [line for each in axes.figure.axes for line in each.lines]
    assert len({line.get_color() for line in lines}) == 3
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == [*map(Line2D.get_label, lines)]
    pyplot.close(axes.figure)


def test_an_evaluation_shows_few_digits() -> None:
    """A score has no sixteen digits that mean something."""
    evaluation = Evaluation(0.123456789, 0.87654321, 30, {"f1": Score(0.123456, greater_is_better=True)})
    assert repr(evaluation) == "Evaluation(loss=0.1235, accuracy=0.8765, f1=0.1235, examples=30)"
