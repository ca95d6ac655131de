"""The progress bar and the loggers write what a run reports, with the real libraries where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgepeft
from edgepeft_runtime import Callback, Progress, Trainer
from edgepeft_runtime.errors import MissingExtra
from tests.support.tiny_bundle import build, examples

DATA, HELD_OUT = examples(45), examples(30, seed=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundles") / "tiny")


def fitted(bundle: Path, callback: Callback) -> tuple[list[float], list[float | None]]:
    """Losses of the steps, and of the epochs on held-out data."""
    losses: list[float] = []

    def note(progress: Progress) -> None:
        losses.append(progress.loss)

    with Trainer.open(bundle) as trainer:
        report = trainer.fit(DATA, batch_size=15, epochs=2, validate=HELD_OUT, callbacks=[callback, note])
    return losses, [record.held_out_loss for record in report.history]


def test_the_bar_shows_steps_and_epochs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All steps at the end, and a line per epoch."""
    pytest.importorskip("tqdm")
    losses, _ = fitted(bundle, edgepeft.ProgressBar())
    out, err = capsys.readouterr()
    assert "6/6" in err and f"loss={losses[-1]:.4g}" in err
    assert [line.split()[1] for line in out.splitlines() if line.startswith("epoch")] == ["0", "1", "2"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(MissingExtra, match="tensorboardX") as refused:
        edgepeft.TensorBoardLogger("runs")
    assert refused.value.hint == "pip install tensorboardX"


def test_tensorboard_reads_the_losses(bundle: Path, tmp_path: Path) -> None:
    """Each step's loss is an event in the file."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    losses, held_out = fitted(bundle, edgepeft.TensorBoardLogger(tmp_path))
    (file,) = tmp_path.iterdir()
    content, events = file.read_bytes(), list[Event]()
    while content:  # TFRecord: length, its checksum, the event, its checksum
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    found = {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}
    assert [found["loss", step] for step in range(1, 7)] == pytest.approx(losses)
    assert [found["epoch/held_out_loss", step] for step in (0, 3, 6)] == pytest.approx(held_out)


def test_mlflow_reads_the_losses(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a store of files."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    experiment = mlflow.set_experiment("digits").experiment_id
    losses, held_out = fitted(bundle, edgepeft.MlflowLogger("first"))
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([experiment])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in ("loss", "epoch/held_out_loss")}
    assert [metric.value for metric in history["loss"]] == pytest.approx(losses)
    assert [metric.value for metric in history["epoch/held_out_loss"]] == pytest.approx(held_out)
    assert (run.data.tags["stopped"], run.info.status) == ("epochs", "FINISHED")


def test_wandb_has_the_losses(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: the summary of the run has the last figures."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="edgepeft", mode="offline", dir=tmp_path) as run:
        losses, held_out = fitted(bundle, edgepeft.WandbLogger(run))
        summary = json.loads(json.dumps(dict(run.summary)))
    assert summary["stopped"] == "epochs"
    assert summary["loss"] == pytest.approx(losses[-1])
    assert summary["epoch/held_out_loss"] == pytest.approx(held_out[-1])
