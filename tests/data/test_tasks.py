"""Rows of tasks become inputs and labels, as transformers makes them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from transformers import BertConfig, PreTrainedTokenizerFast
from transformers.models.bart.modeling_bart import shift_tokens_right

from edgepeft.data import load
from edgepeft.data.tasks.builtin.masked_lm import CHOSEN
from edgepeft.sources.directories.image_processor import image_spec
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.specs import AudioSpec, ImageSpec, LabelSpec, SpectrogramSpec, TensorSpec, TextSpec
from edgepeft_runtime.errors import DataError
from tests.support.bundles import BAD, CLS, FIELDS, GOOD, LONGEST, PAD, SEP, UNK, WORDS, Trained

PER_TOKEN = LabelSpec("labels", "int64", ("batch", "sequence"), len(WORDS), -100)
POSITIONS = tuple(LabelSpec(name, "int64", ("batch",), None, -100) for name in ("start_positions", "end_positions"))


@pytest.fixture
def bundle(text: Trained) -> Bundle:
    return Bundle.open(text.bundle)


def _for(bundle: Bundle, task: str, **changes: Any) -> Bundle:
    """The same bundle, described as one of another task."""
    return Bundle(bundle.path, replace(bundle.manifest, task=task, **changes))


def _jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def _tokenizer(bundle: Bundle) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(bundle.path / "tokenizer.json"), pad_token="[PAD]")


def test_a_word_has_one_label(bundle: Bundle, tmp_path: Path) -> None:
    """The first token of a word has its label, by name or index; special tokens and padding have none."""
    label = LabelSpec("labels", "int64", ("batch", "sequence"), 2, -100)
    data = load(
        _jsonl(
            tmp_path / "d.jsonl",
            {"tokens": ["good", "story-end", "bad"], "ner_tags": ["yes", "no", "yes"]},
            {"tokens": ["bad"], "ner_tags": ["no"]},
        ),
        _for(bundle, "token-classification", labels=(label,)),
    )
    batch = data.batch(np.array([0, 1]))
    expected = _tokenizer(bundle)(["good", "story-end", "bad"], is_split_into_words=True)
    assert batch["input_ids"][0].tolist() == expected["input_ids"]
    words, labels = expected.word_ids(), batch["labels"][0].tolist()
    yes, no = (list(bundle.manifest.classes or ()).index(name) for name in ("yes", "no"))
    of_words = [yes, no, yes]
    firsts = {word: words.index(word) for word in (0, 1, 2)}
    assert labels == [of_words[w] if w is not None and firsts[w] == i else -100 for i, w in enumerate(words)]
    assert batch["labels"][1].tolist()[:3] == [-100, no, -100]
    assert set(batch["labels"][1].tolist()[3:]) <= {-100}


def test_words_and_labels_of_different_number_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """With the line."""
    label = LabelSpec("labels", "int64", ("batch", "sequence"), 2, -100)
    path = _jsonl(tmp_path / "d.jsonl", {"tokens": ["good", "bad"], "ner_tags": ["yes"]})
    with pytest.raises(DataError, match="line 1: There are 2 words and 1 labels"):
        load(path, _for(bundle, "token-classification", labels=(label,)))


def test_answers_become_positions_of_tokens(bundle: Bundle, tmp_path: Path) -> None:
    """Characters become tokens; what is cut off or not there has the position 0; long contexts are several examples."""
    long = "the film was a story and its end " * 3 + "awful"
    path = _jsonl(
        tmp_path / "d.jsonl",
        {"question": "good", "context": "the film was bad", "answers": {"text": ["was bad"], "answer_start": [9]}},
        {"question": "good", "context": "the film was bad", "answers": {"text": [], "answer_start": []}},
        {"question": "good", "context": long, "answers": "awful"},
    )
    data = load(path, _for(bundle, "question-answering", labels=POSITIONS))
    first = data.batch(np.array([0]))
    start, end = int(first["start_positions"][0]), int(first["end_positions"][0])
    assert [WORDS[i] for i in first["input_ids"][0, start : end + 1]] == ["was", "bad"]
    assert data.batch(np.array([1]))["start_positions"].tolist() == [0]
    found = [data.batch(np.array([row])) for row in range(2, len(data))]
    assert len(found) > 2
    assert all(batch["input_ids"].shape[1] <= LONGEST for batch in found)
    positions = [int(batch["start_positions"][0]) for batch in found]
    assert positions[0] == 0
    assert WORDS[found[-1]["input_ids"][0, positions[-1]]] == "awful"


def test_an_answer_that_is_not_there_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """A wrong offset would train the wrong words."""
    row = {"question": "good", "context": "the film", "answers": {"text": ["film"], "answer_start": [3]}}
    with pytest.raises(DataError, match="The answer is not in the context"):
        load(_jsonl(tmp_path / "d.jsonl", row), _for(bundle, "question-answering", labels=POSITIONS))


def test_hidden_tokens_are_the_labels(bundle: Bundle, tmp_path: Path) -> None:
    """About 15 % of the tokens are learned, most of them are hidden, special ones are not, and a row stays as it is."""
    assert bundle.manifest.text is not None
    text = replace(bundle.manifest.text, special={"mask": UNK})
    path = _jsonl(tmp_path / "d.jsonl", *({"text": "the film was a story and its end"} for _ in range(400)))
    data = load(path, _for(bundle, "masked-lm", labels=(PER_TOKEN,), text=text))
    whole = load(path, _for(bundle, "masked-lm", labels=(PER_TOKEN,), text=text), labelled=False)
    rows = np.arange(400)
    batch, original = data.batch(rows), whole.batch(rows)["input_ids"]
    learned = batch["labels"] != -100
    assert (batch["labels"][learned] == original[learned]).all()
    assert (batch["input_ids"][~learned] == original[~learned]).all()
    assert abs(learned.sum() / (400 * 8) - CHOSEN) < 0.04  # rows without one get one
    assert 0.7 < (batch["input_ids"][learned] == UNK).mean() < 0.9
    assert not learned[np.isin(original, [CLS, SEP, PAD])].any()
    again = data.batch(rows[10:12])
    assert np.array_equal(again["input_ids"], batch["input_ids"][10:12])


def test_a_decoder_reads_the_labels_one_position_later(bundle: Bundle) -> None:
    """As ``shift_tokens_right`` of transformers makes them."""
    fields = {**FIELDS, "decoder_input_ids": "decoder_ids"}
    inputs = (*bundle.manifest.inputs, TensorSpec("decoder_input_ids", "int64", ("batch", "decoder_sequence")))
    label = LabelSpec("labels", "int64", ("batch", "decoder_sequence"), len(WORDS), -100)
    text = TextSpec(LONGEST, PAD, fields, special={"decoder_start": SEP})
    dimensions = {**bundle.manifest.dimensions, "decoder_sequence": bundle.manifest.dimensions["sequence"]}
    described = _for(bundle, "seq2seq-lm", inputs=inputs, labels=(label,), text=text, dimensions=dimensions)
    data = load([("good", "bad film"), ("bad film was", "good")], described)
    batch = data.batch(np.array([0, 1]))
    assert batch["labels"][1].tolist() == [CLS, GOOD, SEP, -100]
    expected = shift_tokens_right(torch.from_numpy(batch["labels"]), PAD, SEP).numpy()
    assert np.array_equal(batch["decoder_input_ids"], expected)
    assert load(["good"], described, labelled=False).batch(np.array([0]))["decoder_input_ids"].tolist() == [[SEP]]


def test_texts_that_belong_together_are_one_row(bundle: Bundle, tmp_path: Path) -> None:
    """Anchors, positives and negatives are padded together; a text to embed is alone."""
    inputs = tuple(TensorSpec(spec.name, spec.dtype, ("batch", "texts", "sequence")) for spec in bundle.manifest.inputs)
    dimensions = {**bundle.manifest.dimensions, "texts": bundle.manifest.dimensions["batch"]}
    described = _for(bundle, "sentence-similarity", inputs=inputs, labels=(), dimensions=dimensions)
    path = _jsonl(tmp_path / "d.jsonl", {"anchor": "good", "positive": "good film", "negative": "bad"})
    batch = load(path, described).batch(np.array([0]))
    film = WORDS.index("film")
    rows = [[CLS, GOOD, SEP, PAD], [CLS, GOOD, film, SEP], [CLS, BAD, SEP, PAD]]
    assert batch["input_ids"].tolist() == [rows]
    assert batch["attention_mask"].tolist() == [[[int(id_ != PAD) for id_ in row] for row in rows]]
    assert load(path, described, labelled=False).batch(np.array([0]))["input_ids"].shape == (1, 1, 3)


def test_choices_are_pairs_with_their_question(bundle: Bundle, tmp_path: Path) -> None:
    """As a list, or as columns with the words that all begin with; the segments are those of pairs."""
    inputs = tuple(TensorSpec(spec.name, spec.dtype, ("batch", 2, "sequence")) for spec in bundle.manifest.inputs)
    label = LabelSpec("labels", "int64", ("batch",), 2, -100)
    described = _for(bundle, "multiple-choice", inputs=inputs, labels=(label,), classes=None)
    listed = _jsonl(tmp_path / "a.jsonl", {"question": "good", "choices": ["film", "bad film"], "label": 1})
    swag = _jsonl(tmp_path / "b.jsonl", {"sent1": "good", "sent2": "bad", "ending0": "film", "ending1": "", "label": 0})
    batch = load(listed, described).batch(np.array([0]))
    expected = _tokenizer(bundle)([["good", "film"], ["good", "bad film"]], padding=True)
    assert batch["input_ids"].tolist() == [expected["input_ids"]]
    assert batch["attention_mask"].tolist() == [expected["attention_mask"]]
    assert batch["labels"].tolist() == [1]
    batch = load(swag, described).batch(np.array([0]))
    expected = _tokenizer(bundle)([["good", "bad film"], ["good", "bad"]], padding=True)
    assert batch["input_ids"].tolist() == [expected["input_ids"]]
    assert "labels" not in load(swag, described, labelled=False).batch(np.array([0]))
    wrong = _jsonl(tmp_path / "c.jsonl", {"question": "good", "choices": ["film"], "label": 1})
    with pytest.raises(DataError, match="line 1: A row has a text and 2 choices"):
        load(wrong, described)
    with pytest.raises(DataError, match="no column of choices"):
        load(_jsonl(tmp_path / "d.jsonl", {"question": "good", "label": 1}), described)


def _sounds(bundle: Bundle, task: str, label: LabelSpec, classes: tuple[str, ...], delimiter: str | None) -> Bundle:
    inputs = (TensorSpec("input_values", "float32", ("batch", "samples")),)
    dimensions = dict.fromkeys(("batch", "samples", "length"), bundle.manifest.dimensions["batch"])
    audio = AudioSpec("input_values", 8000, True, delimiter)
    changes = {"inputs": inputs, "labels": (label,), "classes": classes, "dimensions": dimensions}
    return _for(bundle, task, **changes, text=None, memory=None, audio=audio)


def test_folders_of_recordings_are_classes(bundle: Bundle, tmp_path: Path) -> None:
    """As for images; shorter recordings are followed by silence."""
    for name, length in (("no/a", 800), ("yes/b", 400)):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir()
        wavfile.write(path, 8000, np.random.default_rng(length).integers(-999, 999, length).astype(np.int16))
    label = LabelSpec("labels", "int64", ("batch",), 2, -100)
    data = load(tmp_path, _sounds(bundle, "audio-classification", label, ("yes", "no"), None))
    batch = data.batch(np.array([0, 1]))
    assert batch["labels"].tolist() == [1, 0]
    assert batch["input_values"].shape == (2, 800)
    assert not batch["input_values"][1, 400:].any()
    assert abs(float(batch["input_values"][1, :400].var()) - 1) < 1e-3


def test_texts_of_recordings_are_spelled(bundle: Bundle, tmp_path: Path) -> None:
    """Paths are relative to the table; characters that have no class are refused."""
    wavfile.write(tmp_path / "a.wav", 8000, np.arange(400).astype(np.int16))
    label = LabelSpec("labels", "int64", ("batch", "length"), 5, -100)
    described = _sounds(bundle, "speech-recognition", label, ("<pad>", "|", "A", "B", "<unk>"), "|")
    table = tmp_path / "d.csv"
    table.write_text("path,sentence\na.wav,ab a\na.wav,B\n")
    assert load(table, described).batch(np.array([0, 1]))["labels"].tolist() == [[2, 3, 1, 2], [3, -100, -100, -100]]
    table.write_text("path,sentence\na.wav,abc\n")
    with pytest.raises(DataError, match="line 2: The text cannot be spelled"):
        load(table, described)


def test_texts_of_one_length_are_padded_to_it(bundle: Bundle, tmp_path: Path) -> None:
    """Where the inputs of the bundle have that length, of single texts and of several in a row."""
    single = tuple(replace(spec, shape=("batch", LONGEST)) for spec in bundle.manifest.inputs)
    batch = load([("good film", "yes")], _for(bundle, "text-classification", inputs=single)).batch(np.array([0]))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, LONGEST)
    assert batch["attention_mask"].sum() == 4
    several = tuple(replace(spec, shape=("batch", 2, LONGEST)) for spec in bundle.manifest.inputs)
    table = _jsonl(tmp_path / "d.jsonl", {"anchor": "good", "positive": "bad film"})
    pairs = load(table, _for(bundle, "sentence-similarity", inputs=several, labels=())).batch(np.array([0]))
    assert pairs["input_ids"].shape == (1, 2, LONGEST)


def test_texts_of_recordings_are_written_by_a_decoder(bundle: Bundle, tmp_path: Path) -> None:
    """With the tokens that the tokenizer puts around a text, but the one that the decoder reads first."""
    for name, length in (("a", 800), ("b", 1600)):
        wavfile.write(
            tmp_path / f"{name}.wav", 8000, np.random.default_rng(length).integers(-999, 999, length, np.int16)
        )
    spectrogram = SpectrogramSpec(1600, 64, 16, 6, 4000.0)
    changes = {
        "inputs": (
            TensorSpec("input_features", "float32", ("batch", 6, 100)),
            TensorSpec("decoder_input_ids", "int64", ("batch", "sequence")),
        ),
        "labels": (replace(PER_TOKEN, shape=("batch", "sequence")),),
        "audio": AudioSpec("input_features", 8000, False, spectrogram=spectrogram),
        "text": TextSpec(LONGEST, PAD, {"decoder_input_ids": "decoder_ids"}, special={"decoder_start": CLS}),
    }
    described = _for(bundle, "speech-seq2seq", **changes, memory=None)
    (tmp_path / "d.csv").write_text("path,sentence\na.wav,good film\nb.wav,bad\n")
    batch = load(tmp_path / "d.csv", described).batch(np.array([0, 1]))
    ids = _tokenizer(bundle)(["good film", "bad"])["input_ids"]
    assert batch["labels"].tolist() == [ids[0][1:], [*ids[1][1:], -100]]
    assert batch["decoder_input_ids"].tolist() == [ids[0][:-1], ids[1]]
    assert batch["input_features"].shape == (2, 6, 100)
    alone = load(tmp_path / "d.csv", described, labelled=False).batch(np.array([1]))
    assert alone["decoder_input_ids"].tolist() == [[CLS]] and "labels" not in alone
    (tmp_path / "d.csv").write_text("path,sentence\na.wav,good film\nb.wav,\n")
    with pytest.raises(DataError, match="line 3: The text to write is not text"):
        load(tmp_path / "d.csv", described)


def test_images_and_their_texts_are_pairs(bundle: Bundle, tmp_path: Path) -> None:
    """Paths are relative to the table; both columns may be named; a folder is refused with what to give."""
    from PIL import Image

    for name, value in (("a", 0), ("b", 255)):
        Image.fromarray(np.full((20, 30), value, np.uint8)).save(tmp_path / f"{name}.png")
    changes = {
        "inputs": (*bundle.manifest.inputs, TensorSpec("pixel_values", "float32", ("batch", 3, 8, 8))),
        "labels": (),
        "image": ImageSpec("pixel_values", (8, 8), 3, (0.5,) * 3, (0.5,) * 3),
    }
    described = _for(bundle, "image-text", **changes, memory=None)
    table = _jsonl(
        tmp_path / "d.jsonl", {"image": "b.png", "caption": "good film"}, {"image": "a.png", "caption": "bad"}
    )
    batch = load(table, described).batch(np.array([1, 0]))
    expected = _tokenizer(bundle)(["bad", "good film"], padding=True)
    assert batch["input_ids"].tolist() == expected["input_ids"]
    assert batch["attention_mask"].tolist() == expected["attention_mask"]
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert (batch["pixel_values"][0] == -1).all() and (batch["pixel_values"][1] == 1).all()
    named = _jsonl(tmp_path / "e.jsonl", {"photo": "b.png", "words": "good film"})
    assert load(named, described, text_column=("photo", "words")).batch(np.array([0]))["pixel_values"].shape[0] == 1
    with pytest.raises(DataError, match="no column of images"):
        load(named, described)
    with pytest.raises(DataError, match="pairs of images and texts") as failure:
        load(tmp_path, described)
    assert "give a table" in str(failure.value.hint)
    missing = _jsonl(tmp_path / "f.jsonl", {"image": "c.png", "text": "good"})
    with pytest.raises(DataError, match=r"c\.png"):
        load(missing, described)


@pytest.mark.parametrize("reduced", [False, True])
def test_masks_are_resized_like_their_images(reduced: bool, bundle: Bundle, tmp_path: Path) -> None:
    """As transformers' processor does: nearest pixel, the same crop. Values of a palette are classes."""
    from PIL import Image
    from transformers import SegformerImageProcessor

    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    values = np.array([0, 1, 2, 255 if reduced else 0], np.uint8)
    mask = Image.fromarray(values[draw.integers(0, 4, (40, 60))])
    coloured = mask.copy()
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255] + [9] * (253 * 3))
    for folder, image in (("images", picture), ("masks", coloured)):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "a.png")
    size = {"height": 24, "width": 32}
    processor = SegformerImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_reduce_labels=reduced)
    expected = processor(picture, segmentation_maps=mask, return_tensors="np")
    label = LabelSpec("labels", "int64", ("batch", 24, 32), 3, 255)
    processor.save_pretrained(tmp_path)
    assert bool(image_spec(tmp_path, BertConfig()).reduce_labels) == reduced
    image = ImageSpec("pixel_values", (24, 32), 3, (0.5,) * 3, (0.5,) * 3, reduce_labels=reduced or None)
    inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, 24, 32)),)
    changes = {"inputs": inputs, "labels": (label,), "text": None, "memory": None, "image": image}
    described = _for(bundle, "semantic-segmentation", **changes)
    batch = load(tmp_path, described).batch(np.array([0]))
    assert np.array_equal(batch["labels"], expected["labels"])
    assert np.abs(batch["pixel_values"] - expected["pixel_values"]).max() < 0.02  # the processor resizes without Pillow
    (tmp_path / "masks" / "a.png").unlink()
    assert set(load(tmp_path, described, labelled=False).batch(np.array([0]))) == {"pixel_values"}
    with pytest.raises(DataError, match=r"1 images in .* have no mask"):
        load(tmp_path, described)
