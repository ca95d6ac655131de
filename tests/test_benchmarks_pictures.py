"""The documentation shows what the benches have measured: pictures, and tables between two comments of a page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.pictures.__main__ import DOCS, FOLDER, RESULTS, sections, with_section
from benchmarks.pictures.deciding import table
from benchmarks.pictures.drawing import PICTURES, draw, relative

METHODS = {
    "speed": {
        "lora": {"update_bytes": 300_000, "ratio": 1.0, "peak_mb": 250.0},
        "full": {"update_bytes": 90_000_000, "ratio": 2.5, "peak_mb": 1300.0},
        "ia3": {"update_bytes": 80_000, "ratio": 1.1, "peak_mb": 240.0},
        "head": {"update_bytes": 3_000, "ratio": 0.5, "peak_mb": 170.0},
    },
    "accuracy": {"lora": {"0": 0.7, "1": 0.72}, "full": {"0": 0.8}, "ia3": {"0": 0.695}, "head": {"0": 0.5}},
}


def test_the_decisions_are_those_of_the_figures() -> None:
    """A method that is more than two points below LoRA is only chosen where accuracy does not count."""
    chosen = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in table(METHODS)[2:]]
    assert chosen == [
        ("the best accuracy", "`full`"),
        ("the best accuracy with an update below 1 MB", "`lora`"),
        ("the smallest update", "`ia3`"),
        ("the fastest step", "`lora`"),
        ("the least memory", "`ia3`"),
        ("the fastest step, whatever the accuracy", "`head`"),
        ("for comparison", "`lora`"),
    ]


def test_sides_that_took_no_turns_are_not_compared() -> None:
    """Times of two runs differ by the machine."""
    rows = [
        {"case": "a", "side": "torch-eager", "ms_per_step": 10.0, "run": "1"},
        {"case": "a", "side": "edgepeft-int8", "ms_per_step": 5.0, "run": "1"},
        {"case": "a", "side": "edgepeft-fp32", "ms_per_step": 7.0, "run": "2"},
        {"case": "a", "side": "edgepeft-int4", "error": "none"},
    ]
    assert relative(rows, "ms_per_step") == {"a": {"torch-eager": 1.0, "edgepeft-int8": 0.5}}


def test_the_page_on_methods_has_the_results_of_today() -> None:
    """`python -m benchmarks.pictures` would not change its table."""
    page = DOCS / "guide" / "methods.md"
    assert with_section(page.read_text("utf-8"), sections()[page]) == page.read_text("utf-8")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_and_shown_on_a_page(name: str, tmp_path: Path) -> None:
    """It is an SVG file below 150 kB, drawn twice with the same bytes."""
    results = json.loads((FOLDER / RESULTS[name]).read_text("utf-8"))
    drawn = draw(name, results, tmp_path).read_bytes()
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and len(drawn) < 150_000
    assert draw(name, results, tmp_path).read_bytes() == drawn
    assert (DOCS / "pictures" / f"{name}.svg").exists()
    assert any(f"pictures/{name}.svg" in page.read_text("utf-8") for page in DOCS.rglob("*.md"))
