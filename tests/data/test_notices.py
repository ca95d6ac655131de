"""One line for what is not used: texts that are cut, columns, files, options."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepeft.data import load
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.notices import EdgepeftWarning
from tests.cli.conftest import Command
from tests.cli.conftest import edgepeft as edgepeft  # a fixture
from tests.support.bundles import LONGEST, Trained

LONG = "good " * 30


def _notices(path: Path, bundle: Path, **options: object) -> list[str]:
    """Return the warnings of loading."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(path, Bundle.open(bundle), **options)
    assert all(issubclass(entry.category, EdgepeftWarning) for entry in caught)
    return [str(entry.message).removeprefix(f"{path}: ") for entry in caught]


CUT = [
    # (columns and rows, of how many texts, tokens of the longest)
    ([("text", "label"), ("good", "yes"), (LONG, "no"), (LONG + "bad", "no")], (2, 3), 33),
    ([("text", "label"), ("good " * (LONGEST - 2), "yes")], None, None),
    ([("text", "label"), ("good " * (LONGEST - 1), "yes")], (1, 1), LONGEST + 1),
]


@pytest.mark.parametrize(("rows", "cut", "longest"), CUT)
def test_texts_that_are_cut_are_counted(
    text: Trained, tmp_path: Path, rows: list[tuple[str, str]], cut: tuple[int, int] | None, longest: int | None
) -> None:
    """How many of how many, to how many tokens, and how many the longest has; special tokens count."""
    path = tmp_path / "d.csv"
    path.write_text("\n".join(",".join(row) for row in rows))
    expected = [] if cut is None else [f"{cut[0]} of {cut[1]} texts are cut to 12 tokens; the longest has {longest}."]
    assert _notices(path, text.bundle) == expected


def test_prompts_that_are_cut_are_counted(causal: Trained, tmp_path: Path) -> None:
    """With their answers as without, and texts of which all is learned."""
    path = tmp_path / "d.csv"
    path.write_text(f"prompt,answer\n{LONG},bad\ngood,bad\n")
    assert _notices(path, causal.bundle) == ["1 of 2 texts are cut to 12 tokens; the longest has 32."]
    assert _notices(path, causal.bundle, labelled=False) == ["1 of 2 texts are cut to 12 tokens; the longest has 31."]
    path.write_text(f"text\n{LONG}\n")
    assert _notices(path, causal.bundle) == ["1 of 1 texts are cut to 12 tokens; the longest has 32."]


def test_columns_that_are_not_used_are_named(text: Trained, tmp_path: Path) -> None:
    """Once per file; a label that is not needed is no surprise."""
    (tmp_path / "d.csv").write_text("text,source,label\ngood,bad,yes\n")
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": "no"}\n{"text": "b", "label": "yes", "id": 3}\n')
    assert _notices(tmp_path / "d.csv", text.bundle) == ["columns that are not used: source."]
    assert _notices(tmp_path / "d.jsonl", text.bundle) == ["columns that are not used: id."]
    assert _notices(tmp_path / "d.jsonl", text.bundle, labelled=False) == ["columns that are not used: id."]


def test_empty_texts_and_a_single_class_are_reported(text: Trained, tmp_path: Path) -> None:
    """Data without labels have no class."""
    (tmp_path / "d.csv").write_text('text,label\n"",yes\ngood, yes \n')
    one_class = "all 2 examples are of the class 'yes'."
    assert _notices(tmp_path / "d.csv", text.bundle) == ["1 of 2 texts are empty.", one_class]
    assert _notices(tmp_path / "d.csv", text.bundle, labelled=False) == ["1 of 2 texts are empty."]


def test_names_of_columns_are_shown_safely(text: Trained, tmp_path: Path) -> None:
    """Short, and without what a terminal would obey or cannot print."""
    (tmp_path / "d.jsonl").write_text(f'{{"text": "a", "label": "no", "\\u001b[2J\\ud800": 1, "{"k" * 9999}": 2}}\n')
    (line,) = _notices(tmp_path / "d.jsonl", text.bundle)
    assert len(line) < 300 and line.isprintable() and line.encode()


def test_options_of_other_data_are_named(images: Trained, text: Trained, tmp_path: Path) -> None:
    """Names of columns for arrays, and a template for a classifier."""
    np.savez(tmp_path / "d.npz", image=np.zeros((1, 1, 8, 8), np.float32), labels=np.zeros(1, int))
    assert "names of columns" in _notices(tmp_path / "d.npz", images.bundle, text_column="said")[0]
    (tmp_path / "d.csv").write_text("text,label\ngood,yes\n")
    assert "template is not used" in _notices(tmp_path / "d.csv", text.bundle, template="{prompt}")[0]


def test_the_command_says_each_thing_in_one_line(text: Trained, tmp_path: Path, edgepeft: Command) -> None:
    """On standard error, once, and without Python's decoration of a warning."""
    (tmp_path / "d.csv").write_text(f"text,label,id\n{LONG},yes,1\ngood,no,2\n")
    outcome = edgepeft("evaluate", text.bundle, "--data", tmp_path / "d.csv", "--threads", 1)
    assert outcome.code == 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("note: ")]
    assert [line.rpartition(".csv: ")[2] for line in lines] == [
        "columns that are not used: id.",
        "1 of 2 texts are cut to 12 tokens; the longest has 32.",
    ]
    assert "Warning" not in outcome.err


def test_files_that_are_no_images_are_named(images: Trained, tmp_path: Path) -> None:
    """With folders that lie too deep, and the classes of which there is no image."""
    folder = tmp_path / "set"
    for name in ("dark/a.png", "dark/deeper/b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    for name in ("dark/Thumbs.db", "notes.txt", ".hidden"):
        (folder / name).write_bytes(b"x")
    notices = _notices(folder, images.bundle)
    assert notices == [
        f"entries that are not images are skipped (3): {Path('dark/Thumbs.db')}, {Path('dark/deeper')}, notes.txt.",
        "classes without an image: light.",
    ]
    assert _notices(folder, images.bundle, labelled=False) == notices[:1]
