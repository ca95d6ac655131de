"""What docs/RASPBERRY_PI.md shows is true: Python runs, commands exist, and systemd understands the units."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from edgepeft.cli.app import app
from edgepeft_runtime import read_tensors, read_update

PAGE = (Path(__file__).parent.parent / "docs" / "RASPBERRY_PI.md").read_text("utf-8")
GOLDEN = Path(__file__).parent / "golden"
COMMAND = "/opt/edgepeft/bin/edgepeft"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


def units() -> dict[str, str]:
    """The unit files, by the name before each."""
    found = dict(re.findall(r"`/etc/systemd/system/([\w.-]+)`[^`]*```ini\n(.*?)```", PAGE, flags=re.S))
    assert set(found) == {"edgepeft-train.service", "edgepeft-train.timer"}
    return found


def calls() -> list[list[str]]:
    """Every call of the command: in a shell, and by systemd."""
    lines = [line.partition("#")[0] for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"^ExecStart=(.*)$", PAGE, flags=re.M)
    split = [shlex.split(line) for line in lines]
    return [words[1:] for words in split if words and words[0] in ("edgepeft", COMMAND)]


@pytest.mark.parametrize("arguments", calls(), ids=" ".join)
def test_every_call_is_one_that_the_command_takes(arguments: list[str]) -> None:
    """Options exist, and accept the values shown."""
    name, *rest = arguments
    command = app.get_command(click.Context(app), name)
    assert command is not None
    command.make_context(name, rest)


def test_there_are_calls_to_look_at() -> None:
    """A rewritten page is noticed."""
    assert [name for name, *_ in calls()] == ["inspect", "train", "pull", "train"]


def test_the_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bundle and data in the folder, it leaves an update of three epochs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "bundle", "bundle")
    np.savez("data.npz", **read_tensors(GOLDEN / "data.safetensors").tensors)
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "RASPBERRY_PI.md", "exec"), scope)
    assert read_update(tmp_path / "update.safetensors").steps == 15


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """Keys, values and the timer's calendar; the command's path is the only thing that is another here."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not on this machine.")
    for name, text in units().items():
        (tmp_path / name).write_text(text.replace(COMMAND, sys.executable))
    done = subprocess.run([tool, "verify", *map(str, tmp_path.iterdir())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_units_belong_together() -> None:
    """The service works where it may write, and does not start once its final file exists."""
    service = units()["edgepeft-train.service"]
    folder = re.search(r"^WorkingDirectory=(.*)$", service, flags=re.M)
    assert folder is not None
    assert folder[1] == "/var/lib/edgepeft"
    assert "StateDirectory=edgepeft\n" in service
    assert f"ConditionPathExists=!{folder[1]}/update.safetensors\n" in service
    assert "--update update.safetensors" in service
