"""Training that respects a device: it waits or ends between steps, saved, and comes to the same end to the bit."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime import FitReport, Limits, Pause, Trainer
from edgepeft_runtime.errors import EdgepeftError, TrainingError
from edgepeft_runtime.train.limits import OTHERS, WINDOW
from tests.support.damage import assert_equal_bits
from tests.support.tiny_bundle import examples

DATA, HELD_OUT = examples(30), examples(12, seed=1)
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "accumulate": 2,
    "schedule": "cosine",
    "validate": HELD_OUT,
    "save_every": None,
}
STEPS = 12
Ask = Callable[[], Pause | None]


def run(
    bundle: Path, state: Path | None, pause: Ask | None = None, *, steps: int | None = None
) -> tuple[list[float], FitReport, dict[str, Any]]:
    """A run in a trainer of its own, perhaps ended after so many steps: losses, report, parameters."""
    losses: list[float] = []
    enough = Pause("enough", "that is enough")
    with Trainer.open(bundle, state=state) as trainer:
        report = trainer.fit(
            DATA,
            callbacks=[lambda now: losses.append(now.loss)],
            pause=pause if steps is None else lambda: enough if len(losses) >= steps else None,
            **SETTINGS,
        )
        return losses, report, trainer.parameters()


@pytest.fixture
def sensors(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of sensors like the kernel's, in °C; ``None`` is one that is switched off."""

    def write(*degrees: float | None) -> Path:
        for number, value in enumerate(degrees):
            zone = tmp_path / "thermal" / f"thermal_zone{number}"
            zone.mkdir(parents=True, exist_ok=True)
            (zone / "temp").write_text("" if value is None else f"{round(value * 1000)}\n")
        return tmp_path / "thermal"

    return write


class Processors:
    """The kernel's count of processor time, as a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._busy, self._idle = 1000.0, 9000.0
        self.count(0, 0)

    def count(self, busy: float, idle: float) -> None:
        """Let so many seconds go by."""
        ticks = os.sysconf("SC_CLK_TCK")
        self._busy, self._idle = self._busy + busy, self._idle + idle
        self.path.write_text(
            f"cpu  {round(self._busy * ticks)} 0 0 {round(self._idle * ticks)} 0 0 0 0 0 0\ncpu0 1 2\n"
        )

    @property
    def window(self) -> float:
        """Seconds after which something is known, over all processors."""
        return WINDOW * (os.cpu_count() or 1)


@pytest.fixture
def processors(tmp_path: Path) -> Processors:
    return Processors(tmp_path / "stat")


# In fit


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 12])
def test_a_run_that_was_ended_resumes_bit_for_bit(steps: int, bundle: Path, tmp_path: Path) -> None:
    """Before the first evaluation, within an epoch, at its end: the next call does the rest, with the same losses."""
    whole = run(bundle, None)
    first = run(bundle, tmp_path / "state", steps=steps)
    assert (first[1].stopped, first[1].finished, first[1].steps) == ("enough", False, steps)
    second = run(bundle, tmp_path / "state")
    assert first[0] + second[0] == whole[0]
    assert len(whole[0]) == STEPS
    assert second[1] == whole[1]
    assert second[1].finished
    assert_equal_bits(second[2], whole[2])


def test_a_run_of_one_step_at_a_time_comes_to_its_end(bundle: Path, tmp_path: Path) -> None:
    """Ended again and again, in one process without a state directory too."""
    whole = run(bundle, None)
    seen = [run(bundle, tmp_path / "state", steps=1) for _ in range(STEPS + 1)]
    assert [loss for losses, _, _ in seen for loss in losses] == whole[0]
    assert [report.finished for _, report, _ in seen] == [False] * STEPS + [True]
    assert_equal_bits(seen[-1][2], whole[2])


def test_a_run_without_a_state_directory_resumes_in_its_trainer(bundle: Path) -> None:
    """In one process nothing has to be written for a run to be ended and called again."""
    whole = run(bundle, None)
    end = Pause("enough", "that is enough")
    with Trainer.open(bundle) as trainer:

        def fit(steps: int) -> FitReport:
            return trainer.fit(DATA, pause=lambda: end if trainer.steps >= steps else None, **SETTINGS)

        reports = [fit(5), fit(9), fit(99)]
        assert [(report.steps, report.finished) for report in reports] == [(5, False), (9, False), (12, True)]
        assert_equal_bits(trainer.parameters(), whole[2])


def test_it_is_saved_before_it_waits(bundle: Path, tmp_path: Path, sensors: Callable[..., Path]) -> None:
    """A device that is switched off while it cools loses no step. Afterwards the run equals an undisturbed one."""
    limits = Limits(temperature=75, every=0.001, thermal=sensors(50, 60))
    losses: list[float] = []
    heats, kept = [0, 3, 4, 12], list[int]()

    def device() -> Pause | None:
        """Hot after these steps. It cools once the saved state has been read."""
        if len(losses) in heats[len(kept) :]:
            sensors(50, 80)
            assert limits() is not None
            if (tmp_path / "state" / "checkpoint.safetensors").exists():
                copy = shutil.copytree(tmp_path / "state", tmp_path / f"copy-{len(kept)}", dirs_exist_ok=True)
                with Trainer.open(bundle, state=copy) as other:
                    if other.steps == len(losses):
                        kept.append(other.steps)
                        sensors(50, 65)
        return limits()

    whole = run(bundle, None)
    with Trainer.open(bundle, state=tmp_path / "state") as trainer:
        report = trainer.fit(DATA, callbacks=[lambda now: losses.append(now.loss)], pause=device, **SETTINGS)
        assert_equal_bits(trainer.parameters(), whole[2])
    assert kept == heats
    assert (losses, report) == whole[:2]


def test_what_the_limits_cannot_measure_is_an_error_of_the_run(
    bundle: Path, tmp_path: Path, sensors: Callable[..., Path]
) -> None:
    """A sensor that disappears does not count as a cool device."""
    limits = Limits(temperature=75, thermal=sensors(50))
    sensors(None)
    with pytest.raises(TrainingError) as caught:
        run(bundle, tmp_path / "state", limits)
    assert caught.value.code == "no-thermometer"


# Time


def test_time_ends_the_training(bundle: Path, tmp_path: Path) -> None:
    """After so many minutes the run is saved and not at its end; the fraction of one will do."""
    limits = Limits(minutes=1e-6)
    losses, report, _ = run(bundle, tmp_path / "state", limits)
    assert (losses, report.stopped, report.finished) == ([], "minutes", False)
    assert (tmp_path / "state" / "checkpoint.safetensors").is_file()
    pause = limits()
    assert pause is not None
    assert pause.detail == "1e-06 minutes are over"
    assert Limits(minutes=1e6)() is None
    assert Limits()() is None


def test_nothing_waits_longer_than_the_time_that_is_left(sensors: Callable[..., Path]) -> None:
    """A hot device ends its training on time too."""
    pause = Limits(minutes=0.01, temperature=60, every=1e6, thermal=sensors(70))()
    assert pause is not None and pause.seconds is not None
    assert pause.seconds <= 0.6


# Temperature


def test_training_waits_until_the_device_has_cooled(sensors: Callable[..., Path]) -> None:
    """The hottest sensor counts. Above the limit it waits until 5 °C below."""
    limits = Limits(temperature=75, every=3, thermal=sensors(40, 75))
    waits = []
    for degrees in (75, 75.1, 74, 70.1, 70, 74, 76):
        sensors(40, degrees)
        pause = limits()
        waits.append(pause is not None)
    assert waits == [False, True, True, True, False, False, True]
    assert pause == Pause("temperature", "76.0 °C, resumes at 70 °C", 3)


def test_sensors_that_are_switched_off_do_not_count(sensors: Callable[..., Path]) -> None:
    """The other sensors are enough. Without any, the limit is refused before training."""
    assert Limits(temperature=75, thermal=sensors(None, 60))() is None
    with pytest.raises(TrainingError) as caught:
        Limits(temperature=75, thermal=sensors(None, None))
    assert caught.value.code == "no-thermometer"
    assert "thermal_zone*/temp" in str(caught.value.context)


# Other processes


def test_training_waits_while_others_are_busy(processors: Processors) -> None:
    """It measures first. Then it waits while others use more than a fifth of the processor time."""
    limits = Limits(idle=True, stat=processors.path)
    pause = limits()
    assert pause is not None
    assert (pause.reason, pause.detail) == ("busy", "measuring the CPU use of other processes for 2 s")
    processors.count(0.5 * processors.window, 0.5 * processors.window)
    pause = limits()
    assert pause is not None
    assert pause.reason == "busy"
    assert pause.detail.startswith("other processes use 50% of the CPU")
    processors.count(0.05 * processors.window, 0.05 * processors.window)  # too short to measure
    assert limits() is not None
    processors.count(0, 2 * processors.window)
    assert limits() is None


def test_what_training_itself_uses_does_not_count(processors: Processors) -> None:
    """A device is idle though this process works: its own time is taken off."""
    limits = Limits(idle=True, stat=processors.path)
    before = time.process_time()
    while time.process_time() < before + 0.2:
        np.ones(1000).sum()
    others = OTHERS * processors.window - 0.1
    processors.count(others + 0.2, processors.window - others)
    assert limits() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="This system has no /proc/stat.")
def test_the_kernels_own_count_is_understood() -> None:
    """This machine is busy or idle; at first it is unknown."""
    pause = Limits(idle=True)()
    assert pause is not None
    assert pause.reason == "busy"


# Mistakes


@pytest.mark.parametrize("setting", [{"minutes": 0}, {"minutes": float("nan")}, {"temperature": -5}, {"every": 0}])
def test_limits_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    """A limit of nothing would never let a step pass."""
    with pytest.raises(EdgepeftError) as caught:
        Limits(**setting)
    assert caught.value.code == "bad-setting"


@pytest.mark.parametrize("text", ["", "cpu 1 2 3\n", "intr 1 2 3 4 5 6 7 8\n"])
def test_a_count_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    """Without the kernel's statistics, ``idle`` cannot be obeyed."""
    (tmp_path / "stat").write_text(text)
    with pytest.raises(TrainingError) as caught:
        Limits(idle=True, stat=tmp_path / "stat")
    assert caught.value.code == "no-processor-times"
