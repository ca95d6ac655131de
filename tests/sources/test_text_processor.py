"""The text settings of a model directory: tokenizer, padding, embeddings, and task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

import edgepeft
from edgepeft.data import load
from edgepeft.sources.errors import SourceError
from edgepeft.sources.load import load_source
from edgepeft_runtime import Trainer
from edgepeft_runtime.notices import EdgepeftWarning
from tests.support.bundles import WORDS, write_tokenizer

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _tokenizer(folder: Path, **special: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer, saved in a model directory."""
    folder.mkdir(exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(write_tokenizer(folder / "plain.json")), **special)
    (folder / "plain.json").unlink()
    tokenizer.save_pretrained(folder)
    return tokenizer


def _bert(folder: Path, vocabulary: int = len(WORDS), **config: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=vocabulary, **SMALL, **config)).eval()
    model.save_pretrained(folder)
    return model


# Tokenizers of other formats


def _bytes_of_gpt2(folder: Path) -> None:
    vocabulary = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {"<|endoftext|>": 256, "th": 257}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    words = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))


def _pieces_of_bert(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "##s", "cat", "caf\u00e9", "cafe", "!"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')


@pytest.mark.parametrize("write", [_bytes_of_gpt2, _pieces_of_bert])
def test_a_tokenizer_of_another_format_is_converted(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Vocabulary and merges, or a list of pieces with its configuration, give the tokenizer of transformers."""
    _bert(tmp_path, 260)
    write(tmp_path)
    carried = Tokenizer.from_str(load_source(tmp_path).files["tokenizer.json"].decode())
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("The cats the caf\u00e9!", "cafe\u0301 \U0001f680", "the " * 50, "<|endoftext|>[SEP]"):
        assert carried.encode(text).ids == theirs(text)["input_ids"]


def test_a_directory_without_tokenizer_says_so(tmp_path: Path) -> None:
    """It is no error: token ids can be passed as arrays."""
    _bert(tmp_path)
    with pytest.warns(EdgepeftWarning, match="has no tokenizer"):
        assert load_source(tmp_path).files == {}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer.json": "{"}, "tokenizer"),
        ({"vocab.json": "{", "merges.txt": "", "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer"}'}, ""),
        ({"vocab.txt": "a", "tokenizer_config.json": '{"tokenizer_class": "ByT5Tokenizer"}'}, "runs in Python"),
    ],
)
def test_a_tokenizer_that_cannot_be_carried_is_refused(files: dict[str, str], words: str, tmp_path: Path) -> None:
    """Broken, or with no fast form."""
    _bert(tmp_path, 400)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=words) as caught:
        load_source(tmp_path)
    assert caught.value.code == "unusable-tokenizer"


def test_files_that_disagree_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's tokens of a text are compared with those of transformers."""
    _bert(tmp_path)
    _tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    other = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other.post_processor = None
    monkeypatch.setattr("edgepeft.sources.directories.text_processor._without_padding", lambda _: other.to_str())
    with pytest.raises(SourceError, match=r"gives .* by tokenizer\.json"):
        load_source(tmp_path)


# Embeddings and padding


def test_added_tokens_need_embeddings(tmp_path: Path) -> None:
    """Both numbers are named where the embedding was not resized; where it was, all is well."""
    for kind, rows in (("small", len(WORDS)), ("resized", len(WORDS) + 2)):
        model = _bert(tmp_path / kind)
        tokenizer = _tokenizer(tmp_path / kind, pad_token="[PAD]", unk_token="[UNK]")
        tokenizer.add_tokens(["<b>", "</b>"])
        tokenizer.save_pretrained(tmp_path / kind)
        model.resize_token_embeddings(rows)
        model.save_pretrained(tmp_path / kind)
    with pytest.raises(
        SourceError, match=r"has 18 tokens, but the model has embeddings for 16[\s\S]*resize_token_embeddings"
    ):
        load_source(tmp_path / "small")
    assert load_source(tmp_path / "resized").files
    text = edgepeft.load_source(tmp_path / "resized").text
    own = edgepeft.Preprocessing(text, tmp_path / "small" / "tokenizer.json")
    ids = torch.ones(2, 4, dtype=torch.int64)
    with pytest.raises(SourceError, match="has 18 tokens"):
        edgepeft.prepare(
            BertForSequenceClassification(BertConfig(vocab_size=16, **SMALL)),
            {"input_ids": ids, "attention_mask": ids},
            method="head",
            out=tmp_path / "bundle",
            preprocessing=own,
        )


LLAMA = LlamaConfig(vocab_size=16, **SMALL, max_position_embeddings=32, num_labels=2, pad_token_id=None)
GPT2 = GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "config"), [(LlamaForSequenceClassification, LLAMA), (GPT2ForSequenceClassification, GPT2)]
)
def test_texts_of_a_causal_classifier_end_where_they_end(kind: Any, config: Any, tmp_path: Path) -> None:
    """The tokenizer's padding is used if the model names none, and a batch gives the outputs of each text alone."""
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = _tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    with pytest.warns(EdgepeftWarning, match=r"tokenizer's \(0\) is used"):
        source = load_source(tmp_path, task="text-classification")
    bundle = edgepeft.prepare(source, method="head", out=tmp_path / "bundle").bundle
    lines = ["good film", "bad", "the story and its end was fine"]
    (tmp_path / "d.csv").write_text("\n".join(["text", *lines]))
    with Trainer.open(bundle) as trainer:
        data = load(tmp_path / "d.csv", trainer.bundle, labelled=False)
        (found,) = trainer.predict(data.batch(np.arange(3))).values()
    for text, row in zip(lines, found, strict=True):
        with torch.no_grad():
            (expected,) = model(torch.tensor([tokenizer(text)["input_ids"]])).logits.numpy()
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize(("pad", "words"), [(None, "name none"), (99, "within num_embeddings"), (-1, "-1")])
def test_padding_that_is_no_token_is_refused(pad: int | None, words: str, tmp_path: Path) -> None:
    """None where the model finds the end of a text by it, or one beyond the vocabulary."""
    LlamaForSequenceClassification(LLAMA).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"pad_token_id": pad}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _tokenizer(tmp_path, unk_token="[UNK]")
    with pytest.raises(SourceError, match=words) as caught:
        load_source(tmp_path, task="text-classification")
    assert caught.value.code in ("padding-token", "source-does-not-load")


def test_a_language_model_needs_no_padding_token(tmp_path: Path) -> None:
    """What is padding is masked, so any token will do."""
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path)
    text = load_source(tmp_path).text
    assert text is not None and text.pad_id == 0


# Kinds of problems


@pytest.mark.parametrize(
    ("config", "loss", "classes"),
    [
        ({"num_labels": 3}, "cross_entropy", ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, "cross_entropy", None),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, "bce_with_logits", ("LABEL_0", "LABEL_1")),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, "bce_with_logits", None),
        ({"num_labels": 2, "problem_type": "regression"}, "mse", ()),
        ({"num_labels": 1}, "mse", ()),
    ],
)
def test_the_loss_is_the_one_of_the_problem(
    config: dict[str, Any], loss: str, classes: tuple[str, ...] | None, tmp_path: Path
) -> None:
    """As transformers chooses it; numbers to predict have no classes."""
    _bert(tmp_path, **config)
    source = load_source(tmp_path)
    assert source.loss == loss
    assert classes is None or source.classes == (classes or None)


@pytest.mark.parametrize("kind", ["multi_label_classification", pytest.param("regression", marks=pytest.mark.slow)])
def test_the_loss_of_a_problem_is_transformers_own(kind: str, tmp_path: Path) -> None:
    """Of several classes at once, given by columns, names or numbers, and of two numbers."""
    model = _bert(tmp_path, num_labels=2, problem_type=kind)
    tokenizer = _tokenizer(tmp_path, pad_token="[PAD]", unk_token="[UNK]")
    bundle = edgepeft.prepare(str(tmp_path), method="head", out=tmp_path / "bundle").bundle
    labels = [[1.0, 0.0], [1.0, 1.0]]
    given = {
        "columns.csv": "text,LABEL_0,LABEL_1\ngood film,1,0\nbad,1,1\n",
        "names.csv": "text,label\ngood film,LABEL_0\nbad,LABEL_1;LABEL_0\n",
        "numbers.jsonl": '{"text": "good film", "label": [1, 0]}\n{"text": "bad", "label": [1, 1]}\n',
    }
    encoded = tokenizer(["good film", "bad"], padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = float(model(**encoded, labels=torch.tensor(labels)).loss)
    with Trainer.open(bundle) as trainer:
        for name, content in given.items():
            if kind == "regression" and name.endswith(".csv"):
                continue
            (tmp_path / name).write_text(content)
            found = trainer.evaluate(load(tmp_path / name, trainer.bundle))
            assert found.loss == pytest.approx(expected, rel=1e-5), name
