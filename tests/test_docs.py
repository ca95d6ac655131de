"""What the README shows is true: its Python runs, and its commands and options are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgepeft.cli.app import app

README = Path(__file__).parent.parent / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), flags=re.S)


def test_the_readmes_python_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepare, train and merge as shown leave a merged model that runs."""
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in _blocks("python"):
        exec(compile(block, str(README), "exec"), scope)
    assert "Evaluation(loss=" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "merged.onnx")
    assert [value.name for value in session.get_inputs()] == ["input"]


def test_the_readmes_commands_and_options_exist() -> None:
    """Every option shown behind ``edgepeft COMMAND`` is one of that command's."""
    shown = [line.partition("#")[0] for block in _blocks("sh") for line in block.splitlines()]
    lines = [line for line in shown if line.startswith("edgepeft ")]
    assert len(lines) >= 7
    for line in lines:
        _, name, *arguments = line.split()
        command = app.get_command(None, name)
        assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, line


def test_the_readme_stays_short() -> None:
    """A reader gets the whole of it in two screens."""
    assert len(README.read_text("utf-8").splitlines()) <= 100
