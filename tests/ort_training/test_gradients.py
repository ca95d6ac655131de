"""Every cell of ``docs/ORT_TRAINING.md``, tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ort_training.conftest import Side
from tests.ort_training.gradients import expected, grid, try_cell


@pytest.mark.matrix
@pytest.mark.parametrize(("name", "compute", "gradient"), list(grid()))
def test_a_gradient_is_as_the_page_says(
    name: str, compute: str, gradient: str, training_python: Path, side: Side, tmp_path: Path
) -> None:
    """The bundle's own gradient, or the tool's error."""
    cell = try_cell(name, compute, gradient, tmp_path, training_python, side)
    assert cell.error == expected(name, compute, gradient)
