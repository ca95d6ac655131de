"""A run resumes as if it had never stopped, with bit-identical losses, whatever stopped it."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.engine.engine import TrainState
from edgepeft_runtime.errors import EdgepeftError, StateError
from edgepeft_runtime.notices import EdgepeftWarning
from edgepeft_runtime.train.checkpoint import NEWEST, PREVIOUS
from edgepeft_runtime.train.records import EpochRecord, FitReport, Progress
from edgepeft_runtime.train.run import FitState, Run
from edgepeft_runtime.train.trainer import Trainer
from tests.support.damage import assert_equal_bits, mutated, rows
from tests.support.tiny_bundle import build, examples

DATA, HELD_OUT = examples(30), examples(12, seed=1)
WRONG = {**HELD_OUT, "labels": (HELD_OUT["labels"] + 1) % 3}
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 4, "accumulate": 2, "schedule": "cosine", "warmup": 0.2}
Outcome = tuple[list[tuple[int, float, float]], FitReport, dict[str, np.ndarray]]


def stop_at(*steps: int) -> Callable[[Progress], None]:
    """Interrupts when the run has taken so many steps."""

    def progress(now: Progress) -> None:
        if now.step in steps:
            raise KeyboardInterrupt

    return progress


def run(bundle: Path, state: Path | None, data: Any, stop: int | None = None, **settings: Any) -> Outcome:
    """A run in a trainer of its own, perhaps interrupted: steps with loss and lr, report, parameters."""
    seen: list[tuple[int, float, float]] = []

    def progress(now: Progress) -> None:
        seen.append((now.step, now.loss, now.lr))
        if now.step == stop:
            raise KeyboardInterrupt

    with Trainer.open(bundle, state=state, seed=3) as trainer:
        try:
            report = trainer.fit(data, callbacks=[progress], **{**SETTINGS, **settings})
        except KeyboardInterrupt:
            report = FitReport(0, 0, "", (), None)
        return seen, report, trainer.parameters()


BATCHES = [rows(DATA, at, at + 4) for at in range(0, 30, 4)]
SOURCES: dict[str, Callable[[], Any]] = {
    "arrays": lambda: DATA,
    "batches": lambda: BATCHES,
    "function": lambda: lambda epoch: iter(BATCHES[epoch:] + BATCHES[:epoch]),
}


STOPS = [("arrays", stop) for stop in range(1, 13)] + [(kind, stop) for kind in SOURCES for stop in (1, 4, 7)][3:]


@pytest.mark.parametrize(("kind", "stop"), STOPS)
def test_interrupted_run_resumes_bit_for_bit(kind: str, stop: int, bundle: Path, tmp_path: Path) -> None:
    """At any step, at the end of an epoch too: steps, losses, learning rates, report and parameters are the same."""
    data = SOURCES[kind]
    settings: dict[str, Any] = {"validate": HELD_OUT} | ({"max_steps": 12} if kind == "function" else {})
    whole = run(bundle, None, data(), **settings)
    first = run(bundle, tmp_path / "state", data(), stop, **settings)
    second = run(bundle, tmp_path / "state", data(), **settings)
    assert first[0] + second[0] == whole[0]
    assert second[1] == whole[1]
    assert_equal_bits(second[2], whole[2])


def test_interrupt_after_interrupt(bundle: Path, tmp_path: Path) -> None:
    """A run that is stopped after each single step gets to the same end."""
    whole, seen = run(bundle, None, DATA, validate=HELD_OUT), list[tuple[int, float, float]]()
    for stop in range(1, 14):
        steps, report, parameters = run(bundle, tmp_path / "state", DATA, stop, validate=HELD_OUT)
        seen += steps
    assert seen == whole[0]
    assert report == whole[1]
    assert_equal_bits(parameters, whole[2])


def test_early_stopping_continues_counting(bundle: Path, tmp_path: Path) -> None:
    """Patience and the best adapter survive: the resumed run stops after the same epoch with the same adapter."""
    settings: dict[str, Any] = {"epochs": 9, "validate": WRONG, "patience": 3, "schedule": "constant", "warmup": 0}
    whole = run(bundle, None, DATA, **settings)
    assert whole[1].stopped == "patience"
    for stop in (1, 5, 9):
        run(bundle, tmp_path / "state", DATA, stop, **settings)
    seen, report, parameters = run(bundle, tmp_path / "state", DATA, **settings)
    assert (report, seen) == (whole[1], whole[0][9:])
    assert_equal_bits(parameters, whole[2])


def test_generator_for_one_epoch_is_resumed_by_skipping(bundle: Path, tmp_path: Path) -> None:
    """A fresh generator of the same batches resumes where the old one stopped."""

    def generator() -> Iterator[dict[str, np.ndarray]]:
        yield from BATCHES

    settings: dict[str, Any] = {"epochs": 1, "schedule": "constant", "warmup": 0}
    whole = run(bundle, None, generator(), **settings)
    first = run(bundle, tmp_path / "state", generator(), 2, **settings)
    assert first[0] + run(bundle, tmp_path / "state", generator(), **settings)[0] == whole[0]


def test_interrupted_call_is_continued_in_the_same_process(bundle: Path) -> None:
    """In a notebook: interrupt, call again, without any state directory."""
    whole, seen = run(bundle, None, DATA), list[tuple[int, float, float]]()
    with Trainer.open(bundle, seed=3) as trainer:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(DATA, callbacks=[stop_at(5)], **SETTINGS)
        trainer.fit(DATA, callbacks=[lambda now: seen.append((now.step, now.loss, now.lr))], **SETTINGS)
        assert seen == whole[0][5:]
        assert_equal_bits(trainer.parameters(), whole[2])


def test_finished_run_is_not_trained_again(bundle: Path, tmp_path: Path) -> None:
    """The script is started once more: it gets its report, and a second call of it too."""
    for attempt in range(2):
        with Trainer.open(bundle, state=tmp_path / "state", seed=3) as trainer:
            seen: list[Progress] = []
            reports = [trainer.fit(DATA, callbacks=[seen.append], lr=lr, **SETTINGS) for lr in (0.01, 0.02)]
            assert [report.steps for report in reports] == [12, 12]
            assert (len(seen), trainer.steps) == (0 if attempt else 24, 24)


@pytest.mark.parametrize("stop", [None, 9])
def test_more_epochs_are_those_of_a_longer_run(stop: int | None, bundle: Path, tmp_path: Path) -> None:
    """Finished or interrupted, a run with more epochs takes the steps of one that had them from the start."""
    settings: dict[str, Any] = {"schedule": "constant", "warmup": 2}
    whole = run(bundle, None, DATA, epochs=5, **settings)
    first = run(bundle, tmp_path / "state", DATA, stop, epochs=3, **settings)
    with pytest.warns(EdgepeftWarning, match="5 epochs now instead of 3"):
        second = run(bundle, tmp_path / "state", DATA, 15, epochs=5, **settings)
    third = run(bundle, tmp_path / "state", DATA, epochs=5, **settings)
    assert first[0] + second[0] + third[0] == whole[0]
    assert third[1] == whole[1]
    assert_equal_bits(third[2], whole[2])


def test_more_epochs_continue_from_the_kept_adapter(bundle: Path, tmp_path: Path) -> None:
    """With held-out data, the adapter that the finished run kept is the start and remains the best so far."""
    settings: dict[str, Any] = {"validate": WRONG, "schedule": "cosine"}
    kept = run(bundle, tmp_path / "state", DATA, epochs=3, **settings)
    assert kept[1].best is not None and kept[1].best.epoch == 0
    with pytest.warns(EdgepeftWarning, match=r"adapter of epoch 0, which was kept; .* cosine schedule"):
        _, report, parameters = run(bundle, tmp_path / "state", DATA, epochs=4, **settings)
    assert [record.epoch for record in report.history] == [0, 1, 2, 3, 4]
    assert report.best == kept[1].best
    assert_equal_bits(parameters, kept[2])


def test_manual_steps_are_resumed_from_the_last_save(bundle: Path, tmp_path: Path) -> None:
    """A loop written by hand saves by hand, and resumes with the optimizer's state."""
    batches = [examples(8, seed) for seed in range(6)]
    with Trainer.open(bundle) as trainer:
        whole = [trainer.step(batch) for batch in batches]
    with Trainer.open(bundle, state=tmp_path) as trainer:
        first = [trainer.step(batch) for batch in batches[:3]]
        trainer.save()
        trainer.step(batches[5])
    with Trainer.open(bundle, state=tmp_path) as trainer:
        assert trainer.steps == 3
        assert first + [trainer.step(batch) for batch in batches[3:]] == whole


def test_resume_goes_back_to_the_last_save(bundle: Path, tmp_path: Path) -> None:
    """After steps that went wrong, the steps from the last save on are as they were the first time."""
    batches = [rows(DATA, at, at + 5) for at in range(0, 30, 5)]
    with Trainer.open(bundle, state=tmp_path / "state") as trainer:
        trainer.step(batches[0])
        trainer.save()
        first = [trainer.step(batch) for batch in batches[1:]]
        trainer.resume()
        assert trainer.steps == 1
        assert [trainer.step(batch) for batch in batches[1:]] == first


def test_resume_without_a_checkpoint_says_so(bundle: Path, tmp_path: Path) -> None:
    """Neither a trainer without a state directory nor one that never saved has anything to go back to."""
    with Trainer.open(bundle) as trainer, pytest.raises(StateError, match="no checkpoint"):
        trainer.resume()
    with Trainer.open(bundle, state=tmp_path / "state") as trainer, pytest.raises(StateError, match="no checkpoint"):
        trainer.resume()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"batch_size": 5}, "batch_size"),
        ({"lr": 0.5}, "lr"),
        ({"epochs": 2}, "epochs"),
        ({"epochs": 4, "lr": 0.5}, "epochs"),
        ({"shuffle": False}, "shuffle"),
    ],
)
def test_other_settings_are_refused_by_name(change: dict[str, Any], name: str, bundle: Path, tmp_path: Path) -> None:
    """A resumed run with other settings would be neither the old run nor a new one."""
    run(bundle, tmp_path, DATA, 5)
    with pytest.raises(StateError, match=name):
        run(bundle, tmp_path, DATA, **change)
    with pytest.raises(StateError, match="training_examples: this run 29, the state 30"):
        run(bundle, tmp_path, rows(DATA, 0, 29))
    with pytest.raises(StateError, match="training_data"):
        run(bundle, tmp_path, examples(30, seed=9))
    with pytest.raises(StateError, match="held_out_examples: this run 12, the state None"):
        run(bundle, tmp_path, DATA, validate=HELD_OUT)
    with pytest.raises(StateError, match="seed: this run 4, the state 3"):
        Trainer.open(bundle, state=tmp_path, seed=4)


def test_shorter_stream_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A stream that ends before the step that the run had reached is another stream."""
    run(bundle, tmp_path, lambda _: iter(BATCHES), 3, max_steps=8)
    with pytest.raises(StateError, match="fewer batches"):
        run(bundle, tmp_path, lambda _: iter(BATCHES[:2]), max_steps=8)


def test_state_of_another_bundle_or_adapter_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Both hashes are named."""
    run(bundle, tmp_path / "state", DATA, 2)
    other = build(tmp_path / "other", seed=8)
    with pytest.raises(StateError, match=r"another bundle\. \[foreign-state\]\ngraphs_sha256") as error:
        Trainer.open(other, state=tmp_path / "state")
    for path in (bundle, other):
        assert Bundle.open(path).graphs_sha256 in str(error.value.context)
    with Trainer.open(bundle) as trainer:
        adapter = {name: array + np.float32(1) for name, array in trainer.parameters().items()}
    with pytest.raises(StateError, match="another adapter"):
        Trainer.open(bundle, state=tmp_path / "state", adapter=adapter)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_damaged_newest_checkpoint_falls_back(damage: str, bundle: Path, tmp_path: Path) -> None:
    """The checkpoint before it is taken, to the bit, and is not lost by the next save."""
    whole = run(bundle, None, DATA)
    run(bundle, tmp_path, DATA, 7, save_every=2)
    newest = tmp_path / NEWEST
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "missing":
        newest.unlink()
    else:
        newest.write_bytes({"truncated": bytes(content[:-9]), "flipped": bytes(content), "empty": b""}[damage])
    previous = (tmp_path / PREVIOUS).read_bytes()
    with Trainer.open(bundle, state=tmp_path, seed=3) as trainer:
        assert trainer.steps == 6
        trainer.save()
    assert (tmp_path / PREVIOUS).read_bytes() == previous
    assert run(bundle, tmp_path, DATA)[0] == whole[0][6:]


def test_no_whole_checkpoint_is_an_error_not_a_new_run(bundle: Path, tmp_path: Path) -> None:
    """Days of training must not be started over in silence."""
    run(bundle, tmp_path, DATA, 7, save_every=2)
    for name in (NEWEST, PREVIOUS):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(StateError, match="No checkpoint"):
        Trainer.open(bundle, state=tmp_path)


def test_random_damage_to_the_checkpoints_never_escapes(bundle: Path, tmp_path: Path) -> None:
    """Any mutation of both files resumes the old run or raises a StateError."""
    run(bundle, tmp_path, DATA, 7, save_every=7)
    (tmp_path / PREVIOUS).unlink(missing_ok=True)
    whole, rng = (tmp_path / NEWEST).read_bytes(), np.random.default_rng(3)
    for _ in range(100):
        (tmp_path / NEWEST).write_bytes(mutated(whole, rng))
        try:
            with Trainer.open(bundle, state=tmp_path, seed=3) as trainer:
                assert trainer.steps == 7
        except EdgepeftError:
            continue


def test_two_runs_do_not_share_a_state_directory(bundle: Path, tmp_path: Path) -> None:
    """The second one fails with that error. After the first is closed it may start."""
    with Trainer.open(bundle, state=tmp_path), pytest.raises(StateError, match="another process"):
        Trainer.open(bundle, state=tmp_path)
    Trainer.open(bundle, state=tmp_path).close()


SCRIPT = """
import sys
from pathlib import Path
from edgepeft_runtime.train.trainer import Trainer
from tests.support.tiny_bundle import examples
with Trainer.open(sys.argv[1], state=sys.argv[2] or None, threads=1) as trainer:
    show = lambda now: print(now.step, now.loss.hex(), flush=True)
    trainer.fit(examples(40), epochs=30, batch_size=4, validate=examples(8, 1), save_every=3, callbacks=[show])
    trainer.save_update(sys.argv[3])
print("done", flush=True)
"""


def test_a_kill_loses_only_steps_since_the_last_save(bundle: Path, tmp_path: Path) -> None:
    """kill -9 at random moments, again and again: losses and update are those of an uninterrupted run."""
    losses = dict(trained(bundle, "", tmp_path / "whole"))
    rng, last, state = np.random.default_rng(6), 0, str(tmp_path / "state")
    for _ in range(6):
        lines = trained(bundle, state, tmp_path / "update", kill_after=int(rng.integers(1, 70)))
        assert all(losses[step] == loss for step, loss in lines)
        if lines:
            first, reached = lines[0][0], lines[-1][0]
            assert last - last % 3 < first <= last + 3
            assert [step for step, _ in lines] == list(range(first, reached + 1))
            last = reached
    lines = trained(bundle, state, tmp_path / "update")
    assert lines[-1] == (300, losses[300])
    assert (tmp_path / "update").read_bytes() == (tmp_path / "whole").read_bytes()


def trained(bundle: Path, state: str, update: Path, kill_after: int | None = None) -> list[tuple[int, str]]:
    """Step and loss, line by line, of a training process that is killed after so many lines."""
    command = [sys.executable, "-c", SCRIPT, str(bundle), state, str(update)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    lines: list[str] = []
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            if len(lines) == kill_after:
                process.kill()
    code = process.wait()
    assert code == (0 if kill_after is None or "done\n" in lines else -9)
    return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n") and line != "done\n"]


def test_interrupt_signal_saves_and_ends(bundle: Path, tmp_path: Path) -> None:
    """Ctrl-C at any moment loses nothing, and the run resumes bit for bit."""
    command = [sys.executable, "-c", SCRIPT, str(bundle), str(tmp_path / "state"), str(tmp_path / "update")]
    env = {"PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert "KeyboardInterrupt" in errors
    reached = int((first + rest.splitlines())[-1].split()[0])
    with Trainer.open(bundle, state=tmp_path / "state") as trainer:
        assert reached <= trainer.steps <= reached + 1
    shutil.copytree(tmp_path / "state", tmp_path / "again")
    whole = dict(trained(bundle, "", tmp_path / "whole"))
    assert all(whole[step] == loss for step, loss in trained(bundle, str(tmp_path / "again"), tmp_path / "update"))
    assert (tmp_path / "update").read_bytes() == (tmp_path / "whole").read_bytes()


RUN = {"seed": 0, "step": 1, "examples": 2, "loss_before": 1.5, "loss_after": None, "held_out_before": None}
WRONG_RUNS = {
    "nothing": "",
    "a-list": "[]",
    "deep": "[" * 100_000,
    "field-missing": json.dumps(RUN),
    "field-more": json.dumps({**RUN, "held_out_after": None, "fits": [], "more": 1}),
    "text-for-number": json.dumps({**RUN, "held_out_after": None, "fits": [], "step": "1"}),
    "below-0": json.dumps({**RUN, "held_out_after": None, "fits": [], "step": -1}),
    "fit-of-nothing": json.dumps({**RUN, "held_out_after": None, "fits": [None]}),
    "huge-loss": json.dumps({**RUN, "held_out_after": None, "fits": []}).replace("1.5", "1e999"),
    "huge-step": json.dumps({**RUN, "held_out_after": None, "fits": [], "step": 10**400}),
}


@pytest.mark.parametrize("name", WRONG_RUNS)
def test_invalid_run_is_refused(name: str) -> None:
    """With a good digest as well: every field is of its kind, none is missed and none is left over."""
    with pytest.raises(StateError) as error:
        Run.from_json(WRONG_RUNS[name], TrainState({}, {}), None)
    assert error.value.code == "unknown-checkpoint"
    assert error.value.context


def test_losses_that_are_not_finite_round_trip() -> None:
    """JSON has no infinite numbers. A held-out loss may be infinite, and the run can still be resumed."""
    history = (EpochRecord(1, 2, 0.5, math.inf, None), EpochRecord(2, 4, 0.25, -math.inf, 0.5))
    run = Run(TrainState({}, {}), 3, held_out_before=math.nan, fits=(FitState({"lr": 0.1}, history=history),))
    text = run.to_json()
    assert "NaN" in text and '"Infinity"' in text
    found = Run.from_json(text, TrainState({}, {}), None)
    assert math.isnan(found.held_out_before or 0.0)
    assert found.fits == run.fits
