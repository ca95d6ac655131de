"""``edgepeft train`` on a device with limits: processes wait, resume, and exit with a code that states the reason."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgepeft.cli.exit_codes import UNFINISHED
from edgepeft_runtime import read_update
from tests.cli.conftest import Command
from tests.support.bundles import Trained
from tests.support.processes import start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Limits are for Linux.")

CALL = """
import os
from edgepeft.cli.app import run
from edgepeft_runtime.train.limits import Limits

Limits.__init__.__kwdefaults__.update({settings!r})
code = run({arguments!r})
print("nice", os.nice(0))
raise SystemExit(code)
"""
"""The command where the kernel's files are elsewhere."""


@contextmanager
def training(
    text: Trained, reviews: Path, folder: Path, *options: object, **files: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process that trains for 24 steps, below ``folder``, and looks at ``files`` for the kernel's."""
    paths = ("--data", reviews, "--state", folder / "state", "--update", folder / "update")
    arguments = [str(part) for part in ("train", text.bundle, *paths, *options)]
    settings = {"every": 0.05, **{name: str(path) for name, path in files.items()}}
    process = start(CALL.format(settings=settings, arguments=arguments))
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    """The next one of the run itself: notes about its data come before."""
    assert process.stderr is not None
    return next(line for line in process.stderr if not line.startswith("note: ")).rstrip("\n")


def heat(folder: Path, degrees: float) -> Path:
    """The kernel's sensors, of which one shows so many °C."""
    zone = folder / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "temp.new").write_text(f"{degrees * 1000:.0f}\n")
    (zone / "temp.new").replace(zone / "temp")
    return folder / "thermal"


def test_time_is_over(text: Trained, reviews: Path, tmp_path: Path, edgepeft: Command) -> None:
    """The run is saved without an update that could be delivered. The same command resumes it and writes one."""
    paths = ("--data", reviews, "--state", tmp_path / "state", "--update", tmp_path / "update")
    ended = edgepeft("train", text.bundle, *paths, "--max-minutes", 1e-6)
    assert ended.code == UNFINISHED == 75
    assert f"1e-06 minutes are over after step 0; the run is saved in {tmp_path / 'state'}." in ended.err
    assert "the same command resumes it." in ended.err
    assert ended.out == ""
    assert not (tmp_path / "update").exists()
    assert edgepeft("train", text.bundle, *paths, "--max-minutes", 1000).code == 0
    assert read_update(tmp_path / "update").steps == 24


def test_a_hot_device_is_waited_for(text: Trained, reviews: Path, tmp_path: Path) -> None:
    """It reports why it waits and when it resumes, and runs every step."""
    with training(text, reviews, tmp_path, "--max-temperature", 75, thermal=heat(tmp_path, 80)) as process:
        assert next_line(process) == "waiting: 80.0 °C, resumes at 70 °C"
        heat(tmp_path, 70)
        assert next_line(process) == "resuming"
        assert (tmp_path / "state" / "checkpoint.safetensors").exists()  # before the first step already
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "24 steps" in out
    assert "waiting" not in err


def test_a_service_that_waits_can_be_stopped(text: Trained, reviews: Path, tmp_path: Path) -> None:
    """SIGTERM is heard while the device cools."""
    with training(text, reviews, tmp_path, "--max-temperature", 75, thermal=heat(tmp_path, 80)) as process:
        assert next_line(process).startswith("waiting")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == UNFINISHED
    assert "terminated after step 0; the run is saved" in err
    assert "Traceback" not in err
    assert (tmp_path / "state" / "checkpoint.safetensors").is_file()


def test_a_limit_that_cannot_be_measured_is_refused(text: Trained, reviews: Path, tmp_path: Path) -> None:
    """Without a sensor nothing is trained, because the option cannot be obeyed."""
    with training(text, reviews, tmp_path, "--max-temperature", 75, thermal=tmp_path) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert "error: no-thermometer" in err
    assert not (tmp_path / "state").exists()


def test_a_busy_device_is_waited_for(text: Trained, reviews: Path, tmp_path: Path) -> None:
    """It has the lowest priority, looks first, and trains when others leave the processors alone."""
    stat = tmp_path / "stat"

    def count(busy: int, idle: int) -> Path:
        (tmp_path / "stat.new").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\n")
        (tmp_path / "stat.new").replace(stat)
        return stat

    with training(text, reviews, tmp_path, "--idle-only", stat=count(1_000_000, 1_000_000)) as process:
        assert next_line(process) == "waiting: measuring the CPU use of other processes for 2 s"
        count(1_000_000, 9_000_000)
        assert next_line(process) == "resuming"
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.endswith("nice 19\n")


@pytest.mark.parametrize("option", ["--max-minutes", "--max-temperature"])
def test_limits_above_zero_alone_are_accepted(option: str, text: Trained, tmp_path: Path, edgepeft: Command) -> None:
    """A limit of 0 is a wrong call."""
    paths = ("--data", "d.csv", "--state", tmp_path / "state", "--update", tmp_path / "update")
    outcome = edgepeft("train", text.bundle, *paths, option, 0)
    assert outcome.code == 2
    assert option in outcome.err
