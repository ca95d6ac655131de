"""Tables in every format, compressed and in memory, hold the same examples."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft.data import load
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.notices import EdgepeftWarning
from tests.support.bundles import BAD, CLS, GOOD, SEP, Trained

ROWS = [{"text": "good film", "label": "yes"}, {"text": 'a "bad", bad;\tone', "label": "no"}]


def _csv(separator: str) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["text", "label"], delimiter=separator)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


FILES = {
    "commas.csv": _csv(","),
    "semicolons.csv": _csv(";"),
    "tabs.csv": _csv("\t"),
    "d.tsv": _csv("\t"),
    "d.jsonl": "\n".join(map(json.dumps, ROWS)),
    "d.json": json.dumps(ROWS, indent=1),
}
PAIRS = [(row["text"], row["label"]) for row in ROWS]
COLUMNS = {"text": [text for text, _ in PAIRS], "label": [label for _, label in PAIRS]}
MEMORY: dict[str, Callable[[], Any]] = {
    "dicts": lambda: ROWS,
    "pairs": lambda: PAIRS,
    "columns": lambda: COLUMNS,
    "arrays": lambda: {name: np.array(column) for name, column in COLUMNS.items()},
    "pandas": lambda: pytest.importorskip("pandas").DataFrame(COLUMNS),
    "polars": lambda: pytest.importorskip("polars").DataFrame(COLUMNS),
    "pyarrow": lambda: pytest.importorskip("pyarrow").table(COLUMNS),
}


@pytest.fixture
def bundle(text: Trained) -> Bundle:
    return Bundle.open(text.bundle)


def _same(data: Any, bundle: Bundle, **options: Any) -> None:
    expected, found = load(PAIRS, bundle).batch(np.arange(2)), load(data, bundle, **options).batch(np.arange(2))
    assert expected["labels"].tolist() == [1, 0]
    for name, array in expected.items():
        assert np.array_equal(found[name], array)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("compressed", [False, True], ids=["", "gz"])
def test_every_format_of_a_file_has_the_same_examples(
    name: str, compressed: bool, bundle: Bundle, tmp_path: Path
) -> None:
    """Separators are recognized by the header; cells may contain all of them."""
    content = FILES[name].encode()
    path = tmp_path / (f"{name}.gz" if compressed else name)
    path.write_bytes(gzip.compress(content) if compressed else content)
    _same(path, bundle)


@pytest.mark.parametrize("kind", MEMORY)
def test_rows_in_memory_are_read_like_files(kind: str, bundle: Bundle) -> None:
    """Frames, lists and columns; a bundle may be named by its path."""
    _same(MEMORY[kind](), bundle)
    assert len(load(MEMORY[kind](), bundle.path, labelled=False)) == 2


def test_the_separator_is_said(bundle: Bundle, tmp_path: Path) -> None:
    """In one line, where it is not the comma. A header may contain the other ones in quotes."""
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        (tmp_path / "d.csv").write_text(_csv(separator))
        with pytest.warns(EdgepeftWarning, match=f"d.csv: the columns are separated by {word}"):
            load(tmp_path / "d.csv", bundle)
    (tmp_path / "d.csv").write_text('"a;b;c",text,label\nx,good,yes\n')
    with pytest.warns(EdgepeftWarning, match="not used: a;b;c"):
        assert len(load(tmp_path / "d.csv", bundle)) == 1


def test_lists_of_texts_need_no_labels(bundle: Bundle) -> None:
    """For predictions, and for causal language models."""
    batch = load(["good", "bad bad"], bundle, labelled=False).batch(np.arange(2))
    assert batch["input_ids"].tolist() == [[CLS, GOOD, SEP, 0], [CLS, BAD, BAD, SEP]]


def test_pairs_of_texts_are_joined_by_the_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    """Two named columns, or text_pair beside text; what is too long is cut, and said once."""
    path = tmp_path / "d.tsv"
    path.write_text("premise\thypothesis\tlabel\ngood\tbad bad\tyes\n")
    batch = load(path, bundle, text_column=("premise", "hypothesis")).batch(np.arange(1))
    assert batch["input_ids"].tolist() == [[CLS, GOOD, SEP, BAD, BAD, SEP]]
    assert load(path, bundle, text_column=("premise", "hypothesis")).type_ids.tolist() == [0, 0, 0, 1, 1, 1]
    for rows in ([{"text": "good", "text_pair": "bad bad", "label": "yes"}],):
        found = load(rows, bundle).batch(np.arange(1))
        assert all(np.array_equal(found[name], batch[name]) for name in batch)
    long = [("good " * 20, "bad " * 20, "no")]
    with pytest.warns(EdgepeftWarning, match="1 of 1 texts are cut to 12 tokens; the longest has 43"):
        cut = load(long, bundle, text_column=("a", "b")).batch(np.arange(1))["input_ids"]
    assert cut.shape == (1, 12)
    assert cut[0, -1] == SEP


def test_texts_in_memory_train(text: Trained) -> None:
    """What the error of ``fit`` advises."""
    with Trainer.open(text.bundle) as trainer:
        report = trainer.fit(load(PAIRS, trainer.bundle), epochs=2)
    assert report.examples == 4


REFUSED: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "row of another kind": (["good", 3], {"labelled": False}, "mixed-rows", "Example 2"),
    "too few values": ([("good",)], {"text_column": ("a", "b")}, "mixed-rows", "Example 1"),
    "label missing": (["good"], {}, "bad-line", "example 1"),
    "unknown class": ([("good", "yes"), ("good", "perhaps")], {}, "bad-line", "example 2"),
    "empty list": ([], {}, "no-data", ""),
    "empty columns": ({"text": [], "label": []}, {}, "no-data", ""),
    "lengths": ({"text": ["a"], "label": ["yes", "no"]}, {}, "different-lengths", "label: 2"),
    "a number": (3, {}, "unknown-data", "int"),
    "three texts": ([("a", "b", "c")], {"text_column": ("a", "b", "c")}, "wrong-columns", "a, b, c"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_rows_in_memory_are_refused(kind: str, bundle: Bundle) -> None:
    """The error names the example."""
    data, options, code, words = REFUSED[kind]
    with pytest.raises(EdgepeftError) as caught:
        load(data, bundle, **options)
    assert caught.value.code == code
    assert words in str(caught.value)


BAD_FILES = {
    "object.json": (b'{"text": "good"}', "bad-line", "not a list"),
    "numbers.json": (b"[3]", "bad-line", "example 1"),
    "cut.json": (b'[{"text": "go', "bad-line", "not JSON"),
    "empty.json": (b"", "no-data", "no examples"),
    "cut.csv.gz": (gzip.compress(FILES["commas.csv"].encode())[:-9], "cannot-read-data", "end-of-stream"),
    "none.csv.gz": (b"text,label\n", "cannot-read-data", "gzip"),
    "bomb.csv.gz": (gzip.compress(b"text,label\n" + b" " * (2**26 + 1)), "cannot-read-data", "decompresses to more"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused(name: str, bundle: Bundle, tmp_path: Path) -> None:
    """Also a small file that decompresses to a large one."""
    content, code, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EdgepeftError) as caught:
        load(tmp_path / name, bundle)
    assert caught.value.code == code
    assert words in str(caught.value)
