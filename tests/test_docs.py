"""What the README and the page on rounds show is true: Python runs, and commands and options are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgepeft.cli.app import app
from edgepeft_runtime.bundle.manifest import ROLES
from edgepeft_runtime.engine.registry import ENGINES

README = Path(__file__).parent.parent / "README.md"
ROUNDS = README.parent / "docs" / "AGGREGATION.md"
PROFILE = README.parent / "docs" / "PROFILE.md"


def _blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), flags=re.S)


def test_the_readmes_python_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepare, train and merge as shown: the accuracy on unseen digits rises, and the merged model runs."""
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in _blocks("python"):
        exec(compile(block, str(README), "exec"), scope)
    before, after = map(float, re.findall(r"accuracy=([0-9.]+)", capsys.readouterr().out))
    assert before < 0.6 and after > 0.75
    session = onnxruntime.InferenceSession(tmp_path / "merged.onnx")
    assert [value.name for value in session.get_inputs()] == ["input"]


def test_the_profiles_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables name the model's layers, and the page is written."""
    monkeypatch.chdir(tmp_path)
    (block,) = _blocks("python", PROFILE)
    exec(compile(block, str(PROFILE), "exec"), {})
    assert "a step takes" in capsys.readouterr().out
    assert "</html>" in (tmp_path / "profile.html").read_text("utf-8")


GUIDE = {page.name: page for page in sorted((README.parent / "docs" / "guide").glob("*.md"))}
WITH_PYTHON = [name for name, page in GUIDE.items() if _blocks("python", page)]
WITH_COMMANDS = {README: 7, ROUNDS: 5, PROFILE: 2} | {
    page: 1 for page in GUIDE.values() if "```sh\nedgepeft " in page.read_text("utf-8")
}


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_the_python_of_a_guide_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in an empty folder; each prepared bundle is opened."""
    from edgepeft_runtime import Bundle

    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in _blocks("python", GUIDE[name]):
        exec(compile(block, name, "exec"), scope)
    bundles = [path.parent for path in tmp_path.glob("*/manifest.json")]
    assert [Bundle.open(path).manifest.parameters for path in bundles]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_the_commands_and_options_that_are_shown_exist(page: Path) -> None:
    """Every option shown after ``edgepeft COMMAND`` is one of that command's."""
    shown = [line.partition("#")[0] for block in _blocks("sh", page) for line in block.splitlines()]
    lines = [line for line in shown if line.startswith("edgepeft ")]
    assert len(lines) >= WITH_COMMANDS[page]
    for line in lines:
        _, name, *arguments = line.split()
        command = app.get_command(None, name)
        assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, line


def test_the_readme_stays_short() -> None:
    """A reader gets the whole of it in two screens."""
    assert len(README.read_text("utf-8").splitlines()) <= 100


def test_the_glossary_is_short_and_true() -> None:
    """At most forty terms in alphabetical order; the roles and engines are those of the runtime."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", (README.parent / "docs" / "GLOSSARY.md").read_text("utf-8"), flags=re.M)
    terms = dict(rows[1:])
    assert len(terms) == len(rows) - 1 <= 40
    assert list(terms) == sorted(terms)
    assert tuple(re.findall("`(.+?)`", terms["role"])) == ROLES
    assert tuple(re.findall("`(.+?)`", terms["engine"])) == ENGINES
