"""What the README and the pages show is true: commands and options are there, and `tests.blocks` runs the blocks."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import edgepeft
import edgepeft_runtime
from edgepeft.cli.app import app
from edgepeft_runtime.bundle.specs import ROLES
from edgepeft_runtime.engine.registry import ENGINES

README = Path(__file__).parent.parent / "README.md"
ROUNDS = README.parent / "docs" / "AGGREGATION.md"
PROFILE = README.parent / "docs" / "PROFILE.md"


def _blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), flags=re.S)


GUIDE = {page.name: page for page in sorted((README.parent / "docs" / "guide").glob("*.md"))}
WITH_COMMANDS = {README: 7, ROUNDS: 5, PROFILE: 2} | {
    page: 1 for page in GUIDE.values() if "```sh\nedgepeft " in page.read_text("utf-8")
}


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


@pytest.mark.parametrize("module", [edgepeft, edgepeft_runtime], ids=lambda module: module.__name__)
def test_the_api_reference_has_every_public_name(module: ModuleType) -> None:
    """A new name is added to a group of the page."""
    page = (README.parent / "docs" / "reference" / "api.md").read_text("utf-8")
    groups = re.findall(rf"::: {module.__name__}\n.*?members: \[(.*?)\]", page, flags=re.S)
    assert sorted(name.strip() for group in groups for name in group.split(",")) == sorted(module.__all__)


def test_every_page_is_linked_from_another() -> None:
    """And every link to a file of the repository leads to one."""
    docs = sorted((README.parent / "docs").rglob("*.md"))
    reached = set()
    for page in [README, README.parent / "CONTRIBUTING.md", *docs]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            if not re.match("[a-z]+:", link):
                target = (page.parent / link).resolve()
                assert target.exists(), f"{page.name} links to {link}"
                reached.add(target)
    assert {page for page in docs if page.resolve() not in reached} == {README.parent / "docs" / "index.md"}
