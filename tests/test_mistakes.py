"""What the command answers to typical mistakes leads to the right call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mistakes.cases import all_mistakes
from tests.mistakes.mistake import Mistake, made
from tests.mistakes.page import PAGE
from tests.mistakes.world import build, mounted
from tests.support.bundles import Trained


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, text: Trained, images: Trained, regression: Trained, causal: Trained
) -> Path:
    """A folder with models, bundles, data and updates."""
    folder = tmp_path_factory.mktemp("world")
    build(folder, text, images, regression, causal)
    return folder


@pytest.fixture(scope="module")
def disks(world: Path) -> Iterator[bool]:
    """Whether a full and a read-only disk are mounted in the world."""
    with mounted(world) as allowed:
        yield allowed


@pytest.mark.parametrize("mistake", all_mistakes(), ids=lambda mistake: mistake.title.replace(" ", "-"))
def test_the_answer_leads_to_the_right_call(mistake: Mistake, world: Path, disks: bool) -> None:
    """Exit code 1, or 2 for wrong usage; message and hint contain what was wrong and what is right. Nothing is left."""
    if mistake.mounted and not disks:
        pytest.skip("this user may not mount a disk")
    before = {str(path) for path in world.rglob("*")}
    answer = made(mistake, world)
    assert {str(path) for path in world.rglob("*") if path.suffix != ".pyc"} - before <= {str(world / "__pycache__")}
    assert answer.code == mistake.code, answer
    assert "Traceback" not in answer.err
    assert [word for word in mistake.words if word not in answer.error] == [], answer.error


def test_the_page_shows_each_mistake_once() -> None:
    """At least sixty, with the calls that are made here."""
    text = PAGE.read_text("utf-8")
    mistakes = all_mistakes()
    assert len({mistake.title for mistake in mistakes}) == len(mistakes) >= 60
    shown = [line.removeprefix("$ edgepeft ") for line in text.splitlines() if line.startswith("$ ")]
    assert shown == [mistake.call for mistake in mistakes], "run python -m tests.mistakes --page docs/MISTAKES.md"
