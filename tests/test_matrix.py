"""Every method on every network has the result in the docs' table: trains and merges like torch, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix import ALL, PAGE, ROWS, TITLES, expected, grid, try_cell


@pytest.mark.matrix
@pytest.mark.parametrize(("method", "network"), [pytest.param(m, n, id=f"{n}-{m}") for m, n in grid()])
def test_a_cell_is_what_the_page_says(method: str, network: str, tmp_path: Path) -> None:
    """Losses of five steps and merged outputs agree with torch's to 1e-4, or the error is the one on the page."""
    assert try_cell(method, network, tmp_path).error == expected(method, network)


def test_the_page_has_every_method_and_every_network() -> None:
    """It is written by a command, and complete."""
    text = PAGE.read_text("utf-8")
    assert TITLES.keys() == ALL.keys()
    assert all(f"| {TITLES[name]} |" in text for name in ALL)
    assert f"| network | {' | '.join(ROWS)} |" in text
