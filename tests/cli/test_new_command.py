"""``edgepeft new``: each project runs as it is, and learns."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
from pathlib import Path

import onnxruntime
import pytest

from edgepeft.projects import KINDS
from tests.cli.conftest import Command


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_runs_as_it_is(
    edgepeft: Command, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepare, train and merge as its README shows; the accuracy on unseen examples rises."""
    folder = tmp_path / "project"
    made = edgepeft("new", kind, folder)
    assert made.code == 0 and "python prepare.py && python train.py && python merge.py" in made.out
    scripts = re.findall(r"^python (\S+)", (folder / "README.md").read_text("utf-8"), flags=re.M)
    assert scripts == ["prepare.py", "train.py", "merge.py"]
    written = []
    with contextlib.chdir(folder):
        for script in scripts:
            runpy.run_path(script, run_name="__main__")
            written.append(capsys.readouterr().out)
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", written[1]))
    assert before < 0.6 and after > 0.9, written[1]
    session = onnxruntime.InferenceSession(folder / "merged.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()


def test_a_folder_with_files_is_left_alone(edgepeft: Command, tmp_path: Path) -> None:
    """An empty one is used."""
    (tmp_path / "notes.txt").write_text("mine")
    refused = edgepeft("new", "table", tmp_path)
    assert refused.code == 1 and "target-exists" in refused.err
    assert os.listdir(tmp_path) == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert edgepeft("new", "table", tmp_path / "empty").code == 0
    assert "'table'" in edgepeft("new", "tabel", tmp_path / "x").err
