"""Texts and labels in .csv and .jsonl files."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepeft.data import load, split
from edgepeft.data.conversations.prompts import Prompter
from edgepeft.data.labels import BadLabel, label_reader
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.errors import DataError, MissingExtra
from tests.support.bundles import BAD, CLS, GOOD, LONGEST, PAD, SEP, WORDS, Trained


@pytest.fixture
def bundle(text: Trained) -> Bundle:
    return Bundle.open(text.bundle)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_gives_padded_ids_masks_and_labels(bundle: Bundle, tmp_path: Path) -> None:
    """Each batch is padded to its own longest text; labels may be names of classes."""
    data = load(write(tmp_path / "d.csv", "label,text\nyes,good\nno,bad bad\nyes,good good bad\n"), bundle)
    batch = data.batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[CLS, BAD, BAD, SEP], [CLS, GOOD, SEP, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [0, 1]
    assert {array.dtype.name for array in batch.values()} == {"int64"}
    assert data.batch(np.array([2]))["input_ids"].shape == (1, 5)


def test_jsonl_is_read_like_csv(bundle: Bundle, tmp_path: Path) -> None:
    """The format of the file makes no difference, other column names can be chosen, blank lines do not count."""
    lines = [{"said": "good film", "is": "yes"}, {"said": "awful\u2028end", "is": "no"}]
    jsonl = write(tmp_path / "d.jsonl", "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    csv = write(tmp_path / "d.csv", "said,is,note\ngood film,yes,\n\nawful\u2028end,no,x\n")
    one, other = (load(path, bundle, text_column="said", label_column="is") for path in (jsonl, csv))
    for name, array in one.batch(np.arange(2)).items():
        assert np.array_equal(array, other.batch(np.arange(2))[name])


def test_long_texts_are_cut_and_keep_their_last_special_token(bundle: Bundle, tmp_path: Path) -> None:
    """Truncation is the tokenizer's own: the text ends with [SEP] all the same."""
    data = load(write(tmp_path / "d.csv", f"text,label\n{'good ' * 5000},yes\n"), bundle)
    ids = data.batch(np.array([0]))["input_ids"][0]
    assert len(ids) == LONGEST
    assert ids[-1] == SEP


def test_byte_order_mark_and_windows_line_ends_do_not_matter(bundle: Bundle, tmp_path: Path) -> None:
    """Spreadsheets write both."""
    data = load(write(tmp_path / "d.csv", b'\xef\xbb\xbftext,label\r\n"good, film",yes\r\n'), bundle)
    assert data.batch(np.array([0]))["labels"].tolist() == [1]


def test_labels_are_not_needed_for_prediction(bundle: Bundle, tmp_path: Path) -> None:
    """With labelled=False a file without labels is read, and the labels of another are ignored."""
    for content in ("text\ngood\n", "text,label\ngood,whatever\n"):
        data = load(write(tmp_path / "d.csv", content), bundle, labelled=False)
        assert set(data.batch(np.array([0]))) == {"input_ids", "attention_mask"}


def test_causal_bundles_need_text_only(causal: Trained, tmp_path: Path) -> None:
    """The labels of a causal language model are its ids, and -100 where there is padding."""
    data = load(write(tmp_path / "d.csv", "text\ngood\nbad bad\n"), Bundle.open(causal.bundle))
    batch = data.batch(np.array([0, 1]))
    assert batch["labels"].tolist() == [[CLS, GOOD, SEP, -100], [CLS, BAD, BAD, SEP]]
    with Trainer.open(causal.bundle) as trainer:
        assert np.isfinite(trainer.evaluate(data).loss)


def test_of_a_prompt_and_its_answer_the_answer_is_learned(causal: Trained, tmp_path: Path) -> None:
    """Labels are -100 over the prompt, its template and the padding; a template can be chosen for each use."""
    bundle = Bundle.open(causal.bundle)
    path = write(
        tmp_path / "d.jsonl", '{"prompt": "the film", "answer": "good"}\n{"prompt": "a", "answer": "bad bad"}\n'
    )
    (the, film, a, was) = (WORDS.index(word) for word in ("the", "film", "a", "was"))
    batch = load(path, bundle).batch(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[CLS, the, film, GOOD], [CLS, a, BAD, BAD]]
    assert batch["labels"].tolist() == [[-100, -100, -100, GOOD], [-100, -100, BAD, BAD]]
    batch = load(path, bundle, template="was {prompt} was").batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[CLS, was, a, was, BAD, BAD], [CLS, was, the, film, was, GOOD]]
    assert batch["labels"].tolist() == [[*[-100] * 4, BAD, BAD], [*[-100] * 5, GOOD]]
    asked = load(path, bundle, labelled=False, template="was {prompt}").batch(np.array([1, 0]))
    assert asked["input_ids"].tolist() == [[CLS, was, a, PAD], [CLS, was, the, film]]
    with pytest.raises(DataError, match="placeholder of the prompt"):
        load(path, bundle, template="no place")


def test_the_bundles_own_template_and_end_token_are_used(causal: Trained, tmp_path: Path) -> None:
    """The manifest contains the template. The first end token is learned after each answer."""
    bundle = Bundle.open(causal.bundle)
    manifest = bundle.manifest
    assert manifest.text is not None and manifest.generation is not None
    text, generation = replace(manifest.text, template="a {prompt}"), replace(manifest.generation, end=(SEP, PAD))
    changed = replace(bundle, manifest=replace(manifest, text=text, generation=generation))
    assert Manifest.from_json(changed.manifest.to_json()) == changed.manifest
    path = write(tmp_path / "d.csv", "prompt,answer\ngood,bad\n")
    batch = load(path, changed).batch(np.array([0]))
    assert batch["input_ids"].tolist() == [[CLS, WORDS.index("a"), GOOD, BAD, SEP]]
    assert batch["labels"].tolist() == [[-100, -100, -100, BAD, SEP]]
    assert load(path, changed, template="{prompt}").batch(np.array([0]))["input_ids"].shape == (1, 4)


def test_prompt_that_is_no_text_is_refused(causal: Trained) -> None:
    """As a command line gives it whose bytes are not UTF-8."""
    with pytest.raises(DataError, match="surrogate pair"):
        Prompter(Bundle.open(causal.bundle)).prompt(os.fsdecode(b"caf\xe9"))


def test_columns_of_prompts_and_answers_can_be_named(causal: Trained, tmp_path: Path) -> None:
    """As those of texts and labels can; a text column alone stays a text of which all is learned."""
    bundle = Bundle.open(causal.bundle)
    path = write(tmp_path / "d.csv", "said,reply,text\ngood,bad,fine\n")
    pair = load(path, bundle, text_column="said", label_column="reply").batch(np.array([0]))
    assert pair["labels"].tolist() == [[-100, -100, BAD]]
    alone = load(path, bundle).batch(np.array([0]))
    assert alone["labels"].tolist() == alone["input_ids"].tolist() == [[CLS, WORDS.index("fine"), SEP]]


def test_a_long_prompt_is_truncated_on_the_left(causal: Trained, tmp_path: Path) -> None:
    """The beginning of a text stays. An answer that leaves no space for a prompt is refused with its line."""
    bundle = Bundle.open(causal.bundle)
    path = write(tmp_path / "d.csv", f"prompt,answer\nthe {'good ' * 30}film,bad bad\n")
    (ids,) = load(path, bundle).batch(np.array([0]))["input_ids"].tolist()
    assert ids == [CLS, *[GOOD] * (LONGEST - 4), WORDS.index("film"), BAD, BAD]
    long = write(tmp_path / "e.csv", f"prompt,answer\na,bad\na,{'bad ' * LONGEST}\n")
    with pytest.raises(DataError, match=r"e\.csv, line 3: The answer does not fit"):
        load(long, bundle)
    empty = write(tmp_path / "f.jsonl", '{"prompt": "a", "answer": 3}\n')
    with pytest.raises(DataError, match=r"f\.jsonl, line 1: The answer is not text"):
        load(empty, bundle)


MISTAKES = [
    # (file, content, line, what the message must say)
    ("d.csv", "text,lable\ngood,yes\n", 1, ["no column 'label'", "text, lable"]),
    ("d.csv", "text,text,label\na,b,yes\n", 1, ["several columns 'text'"]),
    ("d.csv", "text,label\ngood,yes\nbad,yess\n", 3, ["'yess'", "'yes' (is it that?)"]),
    ("d.csv", 'text,label\n"good\n\nfilm",yes\n"bad\nfilm",maybe\n', 5, ["'maybe'", "no, yes"]),
    ("d.csv", "text,label\ngood,2\n", 2, ["'2'", "from 0 to 1"]),
    ("d.csv", "text,label\ngood,-100000\n", 2, ["'-100000'"]),
    ("d.csv", "text,label\ngood,\n", 2, ["found ''"]),
    ("d.csv", "text,label\n\ngood, film,yes\n", 3, ["3 cells", "2"]),
    ("d.csv", "text,label\ngood\n", 2, ["1 cells"]),
    ("d.csv", 'text,label\ngood,yes\n"bad,no\nfine,yes\n', 3, ["not well-formed"]),
    ("d.jsonl", '{"text": "good", "label": "yes"}\n{"text": "bad"}\n', 2, ["no field 'label'"]),
    ("d.jsonl", '{"text": "good", "label": "yes"}\n\n{"text": 7, "label": "no"}\n', 3, ["found 7"]),
    ("d.jsonl", '{"text": "good", "label": true}\n', 1, ["found True"]),
    ("d.jsonl", '{"text": "good", "label": "yes"}\nnonsense\n', 2, ["not JSON"]),
    ("d.jsonl", '["good", "yes"]\n', 1, ["not a JSON object"]),
    ("d.jsonl", '{"text": "good\\ud83d", "label": "yes"}\n', 1, ["surrogate pair", r"'good\ud83d'"]),
    ("d.jsonl", '{"text": "good", "label": "\\udc80"}\n', 1, ["surrogate pair"]),
    ("d.jsonl", '{"text": "good", "label": ' + "9" * 5000 + "}\n", 1, ["not JSON"]),
    ("d.jsonl", '{"text": ' + "[" * 100_000, 1, ["not JSON"]),
    ("d.csv", "text,label\ngood,yes\nsch\xf6n,no\n".encode("latin-1"), 3, ["not UTF-8", "0xf6"]),
    ("d.csv", b"\xef\xbb\xbftext,label\nsch\xf6n,no\n", 2, ["not UTF-8", "0xf6"]),
]


@pytest.mark.parametrize(("name", "content", "line", "words"), MISTAKES)
def test_a_mistake_is_named_with_file_and_line(
    bundle: Bundle, tmp_path: Path, name: str, content: str | bytes, line: int, words: list[str]
) -> None:
    """The error of any wrong file names the position, the expected and the actual value, and has a hint."""
    with pytest.raises(DataError) as caught:
        load(write(tmp_path / name, content), bundle)
    assert f"{name}, line {line}:" in caught.value.message
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.csv", ""), ("d.csv", "\n\n"), ("d.csv", "text,label\n"), ("d.jsonl", "\n"), ("d.txt", "good\n")],
)
def test_a_file_without_examples_is_refused(bundle: Bundle, tmp_path: Path, name: str, content: str) -> None:
    """Training on nothing is a mistake, and so is a file of no known kind."""
    with pytest.raises(DataError, match=name):
        load(write(tmp_path / name, content), bundle)


def test_a_text_of_one_token_teaches_a_causal_model_nothing(causal: Trained, tmp_path: Path, bundle: Bundle) -> None:
    """Such a text is refused by line where the next token is what is learned."""
    path = write(tmp_path / "d.jsonl", '{"text": "good"}\n{"text": ""}\n')
    assert len(load(path, Bundle.open(causal.bundle))) == 2  # the special tokens make it two
    without = write(tmp_path / "e.jsonl", '{"text": "", "label": 0}\n')
    assert load(without, bundle).batch(np.array([0]))["input_ids"].tolist() == [[CLS, SEP]]


def test_bundles_that_take_no_text_say_so(images: Trained, regression: Trained, tmp_path: Path) -> None:
    """The error names the inputs the bundle has."""
    path = write(tmp_path / "d.csv", "text,label\ngood,0\n")
    with pytest.raises(DataError, match="image"):
        load(path, Bundle.open(images.bundle))
    with pytest.raises(DataError, match="does not accept text"):
        load(path, Bundle.open(regression.bundle), labelled=False)


def test_missing_tokenizers_name_the_extra(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error on a device without the package says what to install."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"edgepeft\[text\]"):
        load(write(tmp_path / "d.csv", "text,label\ngood,0\n"), bundle)


def test_numbers_to_predict_are_labels_too(regression: Trained) -> None:
    """A regression accepts as many finite numbers as the model has outputs."""
    read = label_reader(Bundle.open(regression.bundle).manifest)
    assert read([1, 2.5]).tolist() == [1.0, 2.5]
    for wrong in (1.0, [1, 2, 3], "nan", [1, float("nan")], ["a", "b"], None):
        with pytest.raises(BadLabel, match=r"numbers of shape \[2\]"):
            read(wrong)


def test_split_is_the_same_each_time_and_loses_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """A resumed run holds out the same examples as before."""
    data = load(write(tmp_path / "d.csv", "text,label\n" + "good,yes\nbad,no\n" * 10), bundle)
    train, held_out = split(data, 0.25, seed=3)
    again = split(data, 0.25, seed=3)[1]
    assert (len(train), len(held_out)) == (15, 5)
    assert sorted([*train.rows, *held_out.rows]) == list(range(20))
    assert np.array_equal(held_out.rows, again.rows)
    assert np.array_equal(held_out.batch(np.array([1]))["labels"], data.batch(held_out.rows[[1]])["labels"])
    for fraction in (0.0, 1.0, 0.01, -1.0, float("nan")):
        with pytest.raises(DataError, match="fraction"):
            split(data, fraction)
