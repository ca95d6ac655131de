"""The stories of ``examples/stories`` run as they are documented, and end where PyTorch ends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STORIES = Path(__file__).parents[1] / "examples" / "stories"

pytestmark = pytest.mark.slow


def _printed(name: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", STORIES / f"{name}.py"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return ran.stdout


def _pairs(text: str) -> list[tuple[float, float]]:
    """The figures of the device and of PyTorch."""
    return [(float(ours), float(torch)) for ours, torch in re.findall(r": ([\d.]+); PyTorch: ([\d.]+)", text)]


def _change(text: str, what: str) -> tuple[float, float]:
    """A figure before and after training."""
    (found,) = re.findall(rf"{what} ([\d.]+)%? -> ([\d.]+)", text)
    return float(found[0]), float(found[1])


@pytest.mark.parametrize(
    ("name", "what", "least"),
    [
        ("digit_labels", "macro F1", 0.85),
        ("breast_cancer", "AUC", 0.98),
        ("code_tagger", "entity F1", 0.9),
        ("docstring_pairs", "recall@10", 0.84),
    ],
)
def test_a_story_ends_where_pytorch_ends(name: str, what: str, least: float) -> None:
    """The figure rises to a good one, and PyTorch's with the same batches is equal to half a percent."""
    text = _printed(name)
    before, after = _change(text, what)
    assert before < after >= least
    pairs = _pairs(text)
    assert pairs and all(ours == pytest.approx(torch, abs=5e-3) for ours, torch in pairs)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_wake_words_of_another_voice() -> None:
    """The voice that the model understood badly is understood."""
    text = _printed("wake_words")
    before, after = _change(text, "accuracy")
    assert before < 70 and after > 90
    assert all(ours == pytest.approx(torch, abs=0.05) for ours, torch in _pairs(text))
