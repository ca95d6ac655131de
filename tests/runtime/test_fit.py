"""The training loop: repeatable, stops where it should, keeps the best."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime.errors import BadSetting, BatchError, DataError, EdgepeftError, TrainingError
from edgepeft_runtime.train.options import FitOptions
from edgepeft_runtime.train.records import Progress
from edgepeft_runtime.train.schedule import schedule_of
from edgepeft_runtime.train.trainer import Trainer
from edgepeft_runtime.train.update import read_update
from tests.support.damage import assert_equal_bits, rows
from tests.support.tiny_bundle import examples

DATA, HELD_OUT = examples(45), examples(30, seed=1)


def fitted(
    bundle: Path, seed: int = 0, data: Any = DATA, **settings: Any
) -> tuple[list[Progress], dict[str, np.ndarray]]:
    """The progress and the final parameters of a run."""
    seen: list[Progress] = []
    with Trainer.open(bundle, seed=seed) as trainer:
        trainer.fit(data, callbacks=[seen.append], **settings)
        return seen, trainer.parameters()


def test_fit_accepts_the_fields_of_its_options() -> None:
    """Its signature, as help() shows it, has the names and defaults that the dataclass declares, and no others."""
    declared = {field.name: field.default for field in fields(FitOptions)}
    _, _, *keywords = signature(Trainer.fit).parameters.values()
    assert {keyword.name: keyword.default for keyword in keywords} == declared
    assert FitOptions(batch_size=np.int64(4)).identity()["batch_size"] == 4


@pytest.mark.parametrize("settings", [{"epochs": None}, {"batch_size": 2.5}, {"accumulate": True}, {"patience": 0}])
def test_options_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    """Counts are whole numbers of at least 1, and only limits may be missing."""
    with pytest.raises(BadSetting, match=next(iter(settings))):
        FitOptions(validate=HELD_OUT, **settings)


def test_a_seed_makes_a_run_repeatable_to_the_bit(bundle: Path) -> None:
    """Equal seeds give equal losses and parameters, another seed another order."""
    one, two, other = (fitted(bundle, seed, epochs=3) for seed in (4, 4, 5))
    assert [p.loss for p in one[0]] == [p.loss for p in two[0]]
    assert_equal_bits(one[1], two[1])
    assert [p.loss for p in one[0]] != [p.loss for p in other[0]]


def test_training_learns_and_reports(bundle: Path, tmp_path: Path) -> None:
    """The report, the trainer's properties and the update agree."""
    with Trainer.open(bundle) as trainer:
        report = trainer.fit(examples(200), epochs=5, batch_size=16, validate=HELD_OUT)
        assert (report.steps, report.examples, report.stopped) == (65, 1000, "epochs")
        assert (trainer.steps, trainer.examples, trainer.history) == (65, 1000, report.history)
        assert [(r.epoch, r.step) for r in report.history] == [(e, 13 * e) for e in range(6)]
        before, after = report.history[0], report.best
        assert before.loss is None
        assert before.held_out_loss is not None
        assert after is not None
        assert after.held_out_loss is not None
        assert after.held_out_accuracy is not None
        assert after.held_out_loss < 0.6 * before.held_out_loss
        assert after.held_out_accuracy > 0.7
        assert trainer.evaluate(HELD_OUT, batch_size=16).loss == after.held_out_loss
        update = read_update(trainer.save_update(tmp_path / "update"))
        assert (update.loss_before, update.loss_after) == (before.held_out_loss, after.held_out_loss)
        assert (update.steps, update.num_examples) == (65, 1000)
        trainer.step(DATA)
        update = read_update(trainer.save_update(tmp_path / "update"))
        assert (update.loss_before, update.loss_after) == (before.held_out_loss, None)  # not evaluated since


def test_losses_are_those_of_manual_steps(bundle: Path) -> None:
    """Without shuffling, fit is the loop one would write by hand: learning rate, accumulation, last short batch."""
    seen, parameters = fitted(
        bundle, shuffle=False, batch_size=4, accumulate=3, epochs=2, schedule="cosine", warmup=2, lr=0.1
    )
    factor, losses = schedule_of("cosine", 2), []
    with Trainer.open(bundle) as trainer:
        for step in range(8):
            start = step % 4 * 12
            parts = [rows(DATA, at, min(at + 4, 45)) for at in range(start, min(start + 12, 45), 4)]
            losses.append(trainer.step(*parts, lr=0.1 * factor(step, 8)))
        assert losses == [p.loss for p in seen]
        assert_equal_bits(trainer.parameters(), parameters)
    assert [(p.step, p.total, p.epoch) for p in seen] == [(s + 1, 8, s // 4 + 1) for s in range(8)]
    assert [p.lr for p in seen] == [0.1 * factor(step, 8) for step in range(8)]


@pytest.mark.parametrize("kind", ["list", "function", "generator", "npz"])
def test_sources_of_the_same_batches_lead_to_the_same_run(kind: str, bundle: Path, tmp_path: Path) -> None:
    """Arrays in order, a list, a function of the epoch, a generator and a file are one and the same."""
    batches = [rows(DATA, at, at + 8) for at in range(0, 45, 8)]
    np.savez(tmp_path / "data.npz", x=DATA["x"], labels=DATA["labels"])
    sources = {"list": batches, "function": lambda _: iter(batches), "generator": iter(batches)}
    data = sources.get(kind, tmp_path / "data.npz")
    found, expected = fitted(bundle, data=data, shuffle=False), fitted(bundle, shuffle=False)
    assert [p.loss for p in found[0]] == [p.loss for p in expected[0]]
    assert_equal_bits(found[1], expected[1])


def test_early_stopping_keeps_the_best(bundle: Path) -> None:
    """Held-out data with the opposite labels gets worse with every epoch: the untrained adapter is the best."""
    wrong = {**HELD_OUT, "labels": (HELD_OUT["labels"] + 1) % 3}
    with Trainer.open(bundle) as trainer:
        before = trainer.parameters()
        report = trainer.fit(examples(90), epochs=20, validate=wrong, patience=3)
        assert (report.stopped, len(report.history), report.best) == ("patience", 4, report.history[0])
        assert_equal_bits(trainer.parameters(), before)


def test_best_adapter_is_restored_when_later_epochs_are_worse(bundle: Path) -> None:
    """A learning rate that is too high does not converge. The held-out loss at the end is still the smallest seen."""
    with Trainer.open(bundle) as trainer:
        report = trainer.fit(DATA, epochs=12, lr=2.0, validate=HELD_OUT)
        losses = [record.held_out_loss for record in report.history if record.held_out_loss is not None]
        assert report.best is not None
        assert report.best.held_out_loss == min(losses) < losses[-1]
        assert trainer.evaluate(HELD_OUT).loss == min(losses)


def test_max_steps_ends_within_an_epoch(bundle: Path) -> None:
    """The epoch cut short is evaluated and recorded like a whole one; the schedule ends there too."""
    with Trainer.open(bundle) as trainer:
        seen: list[Progress] = []
        report = trainer.fit(DATA, epochs=9, max_steps=8, schedule="linear", validate=HELD_OUT, callbacks=[seen.append])
        assert (report.stopped, report.steps, [r.step for r in report.history]) == ("max_steps", 8, [0, 6, 8])
        assert seen[-1].lr == pytest.approx(0.05 / 8)


def test_streams_without_a_length_need_max_steps_for_a_schedule(bundle: Path) -> None:
    """Without a known end the learning rate cannot decay to it."""
    endless = lambda _: (examples(4, seed) for seed in range(10**9))  # noqa: E731
    with Trainer.open(bundle) as trainer:
        for settings in ({"schedule": "linear"}, {"warmup": 0.1}):
            with pytest.raises(TrainingError, match="max_steps"):
                trainer.fit(endless, **settings)
        report = trainer.fit(endless, schedule="linear", warmup=0.5, max_steps=6)
        assert (report.steps, report.stopped) == (6, "max_steps")


def test_calls_in_one_process_follow_one_another(bundle: Path) -> None:
    """A second call trains further, with the same settings or others; the history contains both."""
    with Trainer.open(bundle) as trainer:
        for lr in (0.01, 0.01, 0.02):
            assert trainer.fit(DATA, lr=lr).steps == 6
        assert (trainer.steps, len(trainer.history)) == (18, 3)


def test_a_bad_batch_in_the_middle_leaves_the_run_before_it(bundle: Path) -> None:
    """A caller that skips the bad data can continue from there."""
    bad = [examples(4), examples(4, 1), {**examples(4), "labels": np.full(4, 9)}]
    with Trainer.open(bundle) as trainer:
        with pytest.raises(BatchError):
            trainer.fit(bad)
        assert trainer.steps == 2
        assert trainer.fit(DATA).steps == 6


def test_generator_as_held_out_data_is_refused(bundle: Path) -> None:
    """It could be evaluated once only; a list of batches serves."""
    batches = [rows(HELD_OUT, 0, 15), rows(HELD_OUT, 15, 30)]
    with Trainer.open(bundle) as trainer:
        with pytest.raises(DataError, match="once"):
            trainer.fit(DATA, validate=iter(batches))
        assert trainer.fit(DATA, validate=batches).best is not None


@pytest.mark.parametrize("data", [[], lambda _: iter([]), {"x": np.zeros((0, 4)), "labels": np.zeros(0)}])
def test_empty_data_is_refused(data: Any, bundle: Path) -> None:
    """A list, a function and arrays without an example."""
    with Trainer.open(bundle) as trainer:
        with pytest.raises(DataError):
            trainer.fit(data)
        with pytest.raises(DataError):
            trainer.evaluate(data)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"accumulate": -1},
        {"max_steps": 0},
        {"save_every": 0},
        {"patience": 2},
        {"schedule": "polynomial"},
        {"warmup": 2.0},
        {"lr": float("nan")},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], bundle: Path) -> None:
    """Before the first step."""
    with Trainer.open(bundle) as trainer:
        with pytest.raises(EdgepeftError):
            trainer.fit(DATA, **settings)
        assert trainer.steps == 0
