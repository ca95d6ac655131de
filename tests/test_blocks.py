"""The documentation's blocks are read as they are written, and run as a reader runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blocks.__main__ import run_page
from tests.blocks.environments import Environments
from tests.blocks.given import WRITERS
from tests.blocks.outputs import missing
from tests.blocks.pages import ROOT, Block, blocks, pages
from tests.blocks.running import Failure, Run

IN_PYTHON = ["README.md", "docs/guide/own_models.md"]
"""Pages whose Python alone runs on every change; `make slow` runs the whole of all pages."""


def _block(language: str, code: str, output: str | None = None) -> Block:
    return Block("page.md", 1, language, code, output, (), (), "")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path, Environments(None, None, tmp_path))
    yield run
    run.close()


def test_a_page_says_what_its_blocks_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Environments, files, outputs, and what is not run."""
    monkeypatch.setattr("tests.blocks.pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "First (`pip install 'edgepeft[host]' scikit-learn`):\n<!-- blocks: given bert texts.csv -->\n\n"
        "```python\nprint(1)\n```\n\n```text\n1\n```\n\nThen (`pip install 'edgepeft[device]'`: small):\n\n"
        "```sh\nls\n```\n\nNo: <!-- blocks: skip it is for others -->\n\n```sh\nrm x\n```\n\n"
        "Back: <!-- blocks: workstation -->\n\n```python\n# a.py\nx = 1\n```\n"
    )
    first, then, no, back = blocks(tmp_path / "page.md")
    assert (first.requirements, first.given) == (("edgepeft[host]", "scikit-learn"), ("bert", "texts.csv"))
    assert (first.output, first.line, first.file) == ("1\n", 5, None)
    assert (then.requirements, then.given, then.output) == (("edgepeft[device]",), (), None)
    assert (no.skipped, back.skipped) == ("it is for others", "")
    assert (back.requirements, back.file) == (first.requirements, "a.py")


def test_every_block_runs_or_says_why_it_does_not() -> None:
    """What a page takes for granted can be written, and what runs has an environment."""
    every = [block for page in pages() for block in blocks(page)]
    assert len(every) > 30
    for block in every:
        assert block.skipped or block.requirements, f"{block.page}:{block.line} names no environment"
        assert set(block.given) <= set(WRITERS)
    assert sum(not block.skipped for block in every) > 20


def test_printed_lines_are_compared_with_the_pages() -> None:
    """Numbers may differ a little, lines may lie between, and everything else is the same."""
    printed = "epoch 1\naccuracy 0.447 of 297\n\nmerged.onnx: 1,234 elements\n"
    assert missing("accuracy 0.45 of 297\nmerged.onnx: 1,200 elements", printed) == []
    assert missing("… of 297", printed) == []
    assert missing("accuracy 0.85 of 297", printed) == ["accuracy 0.85 of 297"]
    assert missing("merged.onnx: 1,200 elements\naccuracy 0.45 of 297", printed) == ["accuracy 0.45 of 297"]
    assert missing("loss 0.45 of 297", printed) == ["loss 0.45 of 297"]


def test_python_blocks_share_a_process_and_files_are_written(here: Run) -> None:
    """A name of the first block is known in the second; a shell block runs in the same folder."""
    here.run(_block("python", "# folder/part.py\nVALUE = 3\n"))
    here.run(_block("python", "from folder.part import VALUE\n"))
    assert here.run(_block("python", "print(VALUE)\n", "3\n")) == "3\n"
    assert here.run(_block("sh", "cat folder/part.py | tail -1\n")) == "VALUE = 3\n"


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (_block("python", "1 / 0\n"), "ZeroDivisionError"),
        (_block("python", "raise SystemExit(3)\n"), "SystemExit: 3"),
        (_block("python", "import os; os._exit(3)\n"), "ended with 3"),
        (_block("sh", "false\necho reached\n"), "it fails"),
        (_block("sh", "echo 2\n", "3\n"), "it does not print: 3"),
    ],
)
def test_a_block_that_fails_is_reported(here: Run, block: Block, said: str) -> None:
    """With the line of the page."""
    with pytest.raises(Failure, match=r"page\.md:1: ") as caught:
        here.run(block)
    assert said in str(caught.value) and "reached" not in caught.value.printed


@pytest.mark.parametrize("page", IN_PYTHON)
def test_a_pages_python_runs_from_top_to_bottom(page: str, here: Run) -> None:
    """In an empty folder; what it prints is what the page says."""
    for block in blocks(ROOT / page):
        if block.language == "python" and not block.skipped:
            here.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    """All blocks in this environment; `make nightly` runs them in new ones, with the wheel, on two Pythons."""
    done, skipped = run_page(page, Environments(None, None, tmp_path), tmp_path)
    assert done + skipped == len(blocks(page))
