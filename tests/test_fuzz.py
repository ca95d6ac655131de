"""Readers accept a changed file or raise an error of ours; ``python -m tests.fuzz`` tries many more changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.measure import BAR_MEGABYTES, Found, tried
from tests.fuzz.mutations import inputs
from tests.fuzz.page import PAGE, page
from tests.fuzz.targets import TARGETS, Scene, Target

INPUTS = 300


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.set_up(tmp_path_factory.mktemp("fuzz"))


def results(target: Target) -> Found:
    return tried(target.read, inputs(target.corpus, target.mutate, INPUTS, seed=1))


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_never_escape(name: str, scene: Scene) -> None:
    """Some are refused and the files themselves are taken; no other error comes of it, and no great use of memory."""
    target = TARGETS[name](scene)
    for content in target.corpus:
        target.read(content)
    found = results(target)
    assert found.inputs == INPUTS and INPUTS / 10 < found.refused < INPUTS
    assert found.escaped == {}
    assert found.megabytes <= BAR_MEGABYTES


def test_what_escapes_and_what_grows_is_found() -> None:
    """Were it not, the page would say nothing."""
    held: list[bytes] = []

    def read(content: bytes) -> None:
        if content == b"grow":
            held.append(b"\x01" * 2**26)
        raise KeyError(content)

    found = tried(read, [b"a", b"b", b"grow"])
    assert (found.inputs, found.escapes, len(found.escaped)) == (3, 3, 3)
    assert found.megabytes == 0 or found.megabytes > 50
    assert not found.good


def test_page_has_a_line_for_every_reader(tmp_path: Path) -> None:
    """With as many inputs as it claims, and nothing that escaped."""
    text, scene = PAGE.read_text("utf-8"), Scene.set_up(tmp_path)
    for maker in TARGETS.values():
        what = maker(scene).what
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {what} |"))
        assert line.split("|")[4].strip() == "0", what
    assert "| x | 3 | 1 | 2 |" in page({"x": Found(inputs=3, refused=1, escapes=2)}, seed=0)
