"""The notebooks run from top to bottom, and show what their texts say."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from tests.notebooks.cells import FOLDER, Json, read, run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "image", "language_model"])
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder. Each cell shows what it shows in the file; the notebook itself asserts what was learned."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = read(FOLDER / f"{name}.ipynb")
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    with contextlib.chdir(tmp_path):
        found = run(notebook)
    assert _kinds(found) == _kinds(notebook), "run python -m tests.notebooks"
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert re.search(r"^assert ", code, flags=re.M)


def _kinds(notebook: Json) -> list[list[str]]:
    """The kinds of what each code cell shows."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [sorted(kind for output in cell["outputs"] for kind in output.get("data", {"stream": 0})) for cell in cells]
