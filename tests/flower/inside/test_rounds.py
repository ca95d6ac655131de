"""Whole runs of rounds: they learn, survive the server's end, and resume bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.flower import messages
from edgepeft.flower.client import client_app
from edgepeft.flower.messages import Training
from edgepeft.flower.rounds import Rounds
from edgepeft.flower.strategy import AdapterStrategy
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from tests.flower.inside.devices import Data, Devices, shares

TRAINING = Training(epochs=2, batch_size=4, lr=0.01)


def _run(bundle: Bundle, data: Data, out: Path, rounds: int, **how: Any) -> Any:
    parts = shares(data, 4)
    app = client_app(bundle.path, lambda context: parts[context.node_id], threads=1)
    strategy = AdapterStrategy(bundle, out, training=TRAINING, **how)
    return strategy.start(Devices(app, 4), num_rounds=rounds)  # type: ignore[arg-type]


def _files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def _separable() -> Data:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(96, 16)).astype(np.float32)
    return {"input": inputs, "labels": np.argmax(inputs[:, :3], axis=1)}


def test_each_kind_of_update_learns_over_rounds(kind: Bundle, tmp_path: Path) -> None:
    """LoRA, biases and selected elements: all four nodes count in every round, and held-out loss falls."""
    data = _separable()
    result = _run(kind, data, tmp_path, 3, held_out=data)
    found = result.train_metrics_clientapp
    assert [(found[number]["updates"], found[number]["kept"]) for number in (1, 2, 3)] == [(4, 0)] * 3
    with Trainer.open(kind) as trainer:
        before = trainer.evaluate(data, batch_size=32).loss
    losses = [before, *(found[number]["held-out-loss"] for number in (1, 2, 3))]
    assert losses == sorted(losses, reverse=True)
    with Trainer.open(kind, adapter=tmp_path / "r000003" / "adapter.safetensors") as trainer:
        assert trainer.evaluate(data, batch_size=32).loss == losses[-1]


def test_a_stopped_server_resumes_bit_for_bit(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """Two rounds, a third that broke off, and two more in another process: the files of four rounds at once."""
    _run(bundle, examples, tmp_path / "whole", 4, held_out=examples)
    _run(bundle, examples, tmp_path / "parts", 2, held_out=examples)
    left = tmp_path / "parts" / "r000003" / "updates"
    left.mkdir(parents=True)
    (left / "7.safetensors").write_bytes(b"half an update")
    (left.parent / "adapter.safetensors").write_bytes(b"half an adapter")
    result = _run(bundle, examples, tmp_path / "parts", 4, held_out=examples)
    assert _files(tmp_path / "whole") == _files(tmp_path / "parts")
    assert sorted(result.train_metrics_clientapp) == [3, 4]


def test_rounds_that_are_done_are_not_run_again(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """Nobody is asked, and the result is the last adapter."""
    done = _run(bundle, examples, tmp_path, 2)
    before = _files(tmp_path)
    again = _run(bundle, examples, tmp_path, 2)
    assert _files(tmp_path) == before and not again.train_metrics_clientapp
    specs = bundle.manifest.parameters
    first, second = (messages.read_arrays(run.arrays, specs, "The run") for run in (done, again))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_kept_round_is_skipped_by_the_next(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """A round without good answers between two with them changes nothing."""
    _run(bundle, examples, tmp_path, 1)
    first = (tmp_path / "r000001" / "adapter.safetensors").read_bytes()
    _run(bundle, examples, tmp_path, 2, max_norm=1e-9)
    report = json.loads((tmp_path / "r000002" / "adapter.json").read_text("utf-8"))
    assert report["kept"] == "no-updates" and len(report["refused"]) == 4
    strategy = AdapterStrategy(bundle, tmp_path)
    assert strategy.rounds.last == 2 and strategy.rounds.adapter() == tmp_path / "r000001" / "adapter.safetensors"
    assert (tmp_path / "r000001" / "adapter.safetensors").read_bytes() == first
    result = _run(bundle, examples, tmp_path, 3)
    assert result.train_metrics_clientapp[3]["updates"] == 4


def test_a_first_round_may_start_elsewhere(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """From arrays that are given, but only where the folder has no rounds yet."""
    given = {name: array + np.float32(0.25) for name, array in bundle.adapter().items()}
    app = client_app(bundle.path, lambda _: examples, threads=1)
    for rounds in (1, 2):
        strategy = AdapterStrategy(bundle, tmp_path, training=Training(max_steps=1, lr=0.0))
        strategy.start(Devices(app, 2), messages.to_record(given), num_rounds=rounds)  # type: ignore[arg-type]
    for number in (1, 2):
        with Trainer.open(bundle, adapter=strategy.rounds.folder(number) / "start.safetensors") as trainer:
            found = trainer.parameters()
        assert all(found[name].tobytes() == array.tobytes() for name, array in given.items())


def test_two_servers_do_not_share_a_folder(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """The second is refused at once, and the first one's rounds stay as they are; a run twice submitted is enough."""
    _run(bundle, examples, tmp_path, 1)
    before = _files(tmp_path)
    with Rounds(tmp_path).locked(), pytest.raises(EdgepeftError) as caught:
        _run(bundle, examples, tmp_path, 2)
    assert caught.value.code == "path-in-use" and _files(tmp_path) == before
    _run(bundle, examples, tmp_path, 2)


def test_a_folder_that_cannot_be_written_is_named(bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """Before any node has worked for it."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EdgepeftError) as caught:
        _run(bundle, examples, tmp_path / "file" / "rounds", 1)
    assert caught.value.code == "cannot-write-file"


def test_rounds_of_another_bundle_are_refused(kind: Bundle, bundle: Bundle, examples: Data, tmp_path: Path) -> None:
    """A folder belongs to one base."""
    _run(bundle, examples, tmp_path, 1)
    with pytest.raises(EdgepeftError) as caught:
        _run(kind, _separable(), tmp_path, 2)
    assert caught.value.code == "foreign-round"
