"""Labels: names or indices, never a guess between the two; several classes at once."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.data import load
from edgepeft.data.labels import BadLabel, label_reader
from edgepeft.sources.class_names import class_names
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec, LossSpec
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.notices import EdgepeftWarning
from tests.support.bundles import Trained

CLASSES = LabelSpec("labels", "int64", ("batch",), 5, -100)


def _read(names: tuple[str, ...] | None, values: list[Any]) -> list[int]:
    """The indices that the labels of one data set come to."""
    read = label_reader(_manifest(CLASSES, names, "cross_entropy"))
    return [int(read(value)) for value in values]


def _manifest(spec: LabelSpec, names: tuple[str, ...] | None, loss: str) -> Manifest:
    """A manifest of which only labels, classes and loss are read."""
    manifest = object.__new__(Manifest)
    for name, value in {"labels": (spec,), "classes": names, "loss": LossSpec(loss)}.items():
        object.__setattr__(manifest, name, value)
    return manifest


STARS = ("1", "2", "3", "4", "5")
WORDS = ("bad", "poor", "fair", "good", "fine")
ACCENTS = (unicodedata.normalize("NFC", "caf\u00e9"), "the", "\u00e0", "b", "c")


@pytest.mark.parametrize(
    ("names", "values", "found"),
    [
        (WORDS, ["fine", "bad", " good "], [4, 0, 3]),
        (WORDS, ["4", 0, "-100"], [4, 0, -100]),
        (None, ["4", 0], [4, 0]),
        (("0", "1", "2", "3", "4"), ["4", 0], [4, 0]),
        (ACCENTS, [unicodedata.normalize("NFD", "caf\u00e9")], [0]),
        (("0.5", "1.0", "1.5", "2.0", "2.5"), [1.0, "2.5"], [1, 4]),
    ],
)
def test_labels_are_names_or_indices(names: tuple[str, ...] | None, values: list[Any], found: list[int]) -> None:
    """One way for a data set; both normal forms of an accent are one name, and -100 goes with either way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _read(names, values) == found


def test_numbers_that_are_names_are_said_to_be() -> None:
    """Of classes named 1 to 5, "1" is the first and not the second, and one line says so."""
    with pytest.warns(EdgepeftWarning, match="names of classes, not as indices: '1' is class 0") as warned:
        assert _read(STARS, ["1", 5, "2"]) == [0, 4, 1]
    assert len(warned) == 1


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
@pytest.mark.parametrize(
    ("names", "values", "words"),
    [
        (STARS, ["4", "0"], ["a number is a name here", "1, 2", "found '0'"]),
        (STARS, ["0", "0"], ["found '0'"]),
        (WORDS, ["bad", "1"], ["as 'bad' before it", "found '1'"]),
        (WORDS, ["1", "bad"], ["the index of a class, as '1' before it"]),
        (WORDS, ["Good"], ["'good' (is it that?)"]),
        (WORDS, ["goood"], ["'good' (is it that?)"]),
        (WORDS, ["5"], ["from 0 to 4"]),
        (WORDS, ["-1"], ["found '-1'"]),
        (WORDS, ["1.0"], ["(write 1)"]),
        (None, [2.0], ["(write 2)"]),
        (None, ["1_0"], ["found '1_0'"]),
        (None, ["\u0661"], ["from 0 to 4"]),
        (None, ["01"], ["found '01'"]),
        (None, [True], ["found True"]),
        (WORDS, [None], ["(no label)"]),
        (WORDS, [""], ["(no label)"]),
        (WORDS, [["bad"]], ["found ['bad']"]),
        (WORDS, [10**400], ["integer of 1329 bits"]),
    ],
)
def test_a_label_that_could_be_mistaken_is_refused(
    names: tuple[str, ...] | None, values: list[Any], words: list[str]
) -> None:
    """The error names a label that is no class, or only by another reading than before, and the expected ones."""
    with pytest.raises(BadLabel) as caught:
        _read(names, values)
    for word in words:
        assert word in str(caught.value)


SEVERAL = LabelSpec("labels", "float32", ("batch", 3))
TAGS = ("sport", "money", "art, music")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([1, 0, 1], [1, 0, 1]),
        ([0.25, 0, 1], [0.25, 0, 1]),
        ("[1, 0, 1]", [1, 0, 1]),
        ("0 1 0", [0, 1, 0]),
        ("0,1;0", [0, 1, 0]),
        (["1", "0", "0"], [1, 0, 0]),
        ("sport;money", [1, 1, 0]),
        (["art, music"], [0, 0, 1]),
        ("art, music", [0, 0, 1]),
        ([], [0, 0, 0]),
        ("[]", [0, 0, 0]),
    ],
)
def test_several_classes_at_once(value: Any, found: list[float]) -> None:
    """A number for each class, or the names of those that apply, as a list or with signs between."""
    read = label_reader(_manifest(SEVERAL, TAGS, "bce_with_logits"))
    assert read(value).tolist() == found
    assert read(value).dtype == np.float32


@pytest.mark.parametrize("value", [1, "", None, "sport;opera", [1, 0], [2, 0, 1], [1, 0, None], "[1, 0", [True, 0, 1]])
def test_what_is_not_several_classes_is_refused(value: Any) -> None:
    """A number alone, no label, an unknown name, too few numbers, or one that is no probability."""
    read = label_reader(_manifest(SEVERAL, TAGS, "bce_with_logits"))
    with pytest.raises(BadLabel, match="3 numbers from 0 to 1"):
        read(value)


def test_names_that_are_numbers_too_are_refused_as_several() -> None:
    """Of classes named 0, 1 and 2, "0 1 1" could be their names or their values."""
    read = label_reader(_manifest(SEVERAL, ("0", "1", "2"), "bce_with_logits"))
    with pytest.raises(BadLabel, match="cannot be confused"):
        read("0 1 1")
    assert read([1, 0, 1]).tolist() == [1, 0, 1]


@pytest.mark.parametrize(("names", "word"), [(("a", "a "), "0 and 1"), (("a", ""), "Class 1"), (ACCENTS[:1] * 2, "é")])
def test_classes_that_cannot_be_distinguished_are_refused(names: tuple[str, ...], word: str, tmp_path: Path) -> None:
    """Two of one name, or one without: before any work, and nothing is written."""
    with pytest.raises(EdgepeftError, match=word) as caught:
        edgepeft.prepare(
            nn.Linear(2, len(names)), torch.zeros(2, 2), method="full", classes=names, out=tmp_path / "bundle"
        )
    assert caught.value.code == "wrong-class-names"
    assert not (tmp_path / "bundle").exists()
    assert class_names([f" {unicodedata.normalize('NFD', name)}" for name in ACCENTS]) == ACCENTS


def test_examples_that_do_not_count_are_counted(text: Trained, tmp_path: Path) -> None:
    """The label -100 leaves an example out, and one line says of how many."""
    (tmp_path / "d.csv").write_text("text,label\ngood,yes\nbad,-100\nfine,-100\n")
    with pytest.warns(EdgepeftWarning, match="2 of 3 examples have the label -100"):
        load(tmp_path / "d.csv", Bundle.open(text.bundle))
