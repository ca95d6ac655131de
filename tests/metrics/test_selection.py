"""A metric chooses the adapter that ``fit`` keeps, and ends it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import SettingError, StateError
from tests.support.tiny_bundle import build, examples

DATA, HELD_OUT = examples(40), examples(30, seed=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("metrics") / "bundle")


def test_evaluate_returns_metrics_and_own_functions(bundle: Path) -> None:
    """A function takes all outputs and all labels."""
    import sklearn.metrics

    def middle(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> float:
        return float((outputs["logits"].argmax(-1)[batch["labels"] == 1] == 1).mean())

    with Trainer.open(bundle) as trainer:
        evaluation = trainer.evaluate(HELD_OUT, 7, ["accuracy", "f1", middle])
        predicted = trainer.predict(HELD_OUT)["logits"].argmax(-1)
    assert list(evaluation.metrics) == ["accuracy", "f1", "middle"]
    assert evaluation.metrics["accuracy"].value == evaluation.accuracy
    f1 = sklearn.metrics.f1_score(HELD_OUT["labels"], predicted, average="macro")
    assert evaluation.metrics["f1"].value == pytest.approx(f1)
    assert set(evaluation.metrics["f1"].parts) <= {"low", "middle", "high"}
    recall = sklearn.metrics.recall_score(HELD_OUT["labels"], predicted, labels=[1], average="macro")
    assert evaluation.metrics["middle"].value == pytest.approx(recall)


def worst_first(outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> float:
    """The smaller the weights' effect, the better: the adapter before training wins."""
    del batch
    return float(np.abs(outputs["logits"]).mean())


worst_first.greater_is_better = False  # type: ignore[attr-defined]


def test_the_best_adapter_by_a_metric_is_kept(bundle: Path) -> None:
    """By F1 that of the greatest value; by a function of one's own another one than by the loss."""
    with Trainer.open(bundle) as trainer:
        report = trainer.fit(DATA, epochs=4, lr=0.1, validate=HELD_OUT, metric="f1")
        values = [record.held_out_metric for record in report.history]
        assert report.best is not None and report.best.held_out_metric == max(v for v in values if v is not None)
        assert report.best is report.history[int(np.argmax(values))]
        assert trainer.evaluate(HELD_OUT, metrics=["f1"]).metrics["f1"].value == report.best.held_out_metric
    with Trainer.open(bundle) as trainer:
        start = trainer.parameters()
        report = trainer.fit(DATA, epochs=5, lr=0.1, validate=HELD_OUT, metric=worst_first, patience=2)
        assert report.best is not None and report.best.epoch == 0
        assert (report.stopped, report.history[-1].epoch) == ("patience", 2)
        for name, array in trainer.parameters().items():
            assert np.array_equal(array, start[name])


def test_a_run_resumes_with_its_metric_alone(bundle: Path, tmp_path: Path) -> None:
    """Another metric, or none, would choose another adapter."""
    with Trainer.open(bundle, state=tmp_path) as trainer:
        trainer.fit(DATA, epochs=2, validate=HELD_OUT, metric="f1")
        saved = trainer.history
    for metric in ("auc", None):
        with Trainer.open(bundle, state=tmp_path) as trainer, pytest.raises(StateError, match="metric"):
            trainer.fit(DATA, epochs=2, validate=HELD_OUT, metric=metric)
    with Trainer.open(bundle, state=tmp_path) as trainer:
        assert trainer.fit(DATA, epochs=2, validate=HELD_OUT, metric="f1").history == saved


def test_a_metric_needs_held_out_data(bundle: Path) -> None:
    """And must fit the bundle."""
    with Trainer.open(bundle) as trainer:
        with pytest.raises(SettingError, match="held-out data"):
            trainer.fit(DATA, metric="f1")
        with pytest.raises(SettingError, match="not defined"):
            trainer.fit(DATA, validate=HELD_OUT, metric="mae")
