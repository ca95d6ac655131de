"""The catalogue of errors: complete, documented, used, and the same in TypeScript."""

from __future__ import annotations

import ast
import copy
import pickle
import re

import pytest

from edgepeft_runtime.errors import BadSetting, EdgepeftError, StaleUpdate
from tests.errors.page import PAGE, ROOT, catalogue, page, sources

ONLY_TYPESCRIPT = {"answer-too-long", "busy", "no-tokens"}
"""Codes of causes that Python does not have."""


@pytest.fixture(scope="module")
def causes() -> dict[str, type[EdgepeftError]]:
    """The class of each code."""
    return catalogue()


def test_the_page_is_up_to_date() -> None:
    """The page equals the command's output."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.errors"


def test_each_cause_says_what_it_is(causes: dict[str, type[EdgepeftError]]) -> None:
    """In a docstring of its own, and its code is in kebab-case."""
    for code, cause in causes.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
        assert cause.__doc__ and cause.__doc__ != cause.__mro__[1].__doc__


def test_each_cause_is_raised_and_no_family_is(causes: dict[str, type[EdgepeftError]]) -> None:
    """What nothing raises is not in the catalogue; a family has no code, so it cannot be raised."""
    modules = [(name, tree) for name, tree in sources() if not re.search(r"\.errors(\.|$)", name)]
    names = {node.id for _, tree in modules for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert {cause.__name__ for cause in causes.values()} <= names
    families = {base.__name__ for cause in causes.values() for base in cause.__mro__[1:-3] if "code" not in vars(base)}
    calls = [
        f"{name}:{node.lineno}: {node.func.id}"
        for name, tree in modules
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in families
    ]
    assert calls == []


def test_a_code_is_registered_once() -> None:
    """A second class with a code that exists is a mistake of ours."""
    with pytest.raises(AssertionError, match="stale-update"):
        type("Other", (EdgepeftError,), {}, code="stale-update")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "error", [StaleUpdate("It is old.", context="a\nb", hint=None), BadSetting("lr", -1, "0 or more")]
)
def test_errors_survive_copies_and_processes(error: EdgepeftError) -> None:
    """Whatever facts the class has, the same texts and the same code arrive."""
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert (str(other), other.render()) == (str(error), error.render())


def test_python_shows_the_code() -> None:
    """In the last line of a traceback too."""
    assert str(StaleUpdate("It is old.", context="Facts.", hint="Retrain.")) == (
        "It is old. [stale-update]\nFacts.\nhint: Retrain."
    )


def test_typescript_uses_the_same_codes(causes: dict[str, type[EdgepeftError]]) -> None:
    """Each code that it throws is in the catalogue."""
    thrown = set[str]()
    for path in (ROOT / "runtimes" / "web" / "src").rglob("*.ts"):
        thrown |= set(re.findall(r'(?:Error|error|Damage)\(\s*"([a-z0-9]+(?:-[a-z0-9]+)*)",', path.read_text("utf-8")))
    assert len(thrown) > 30
    assert thrown - set(causes) == ONLY_TYPESCRIPT
