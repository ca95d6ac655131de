"""A source becomes a model with its inputs, or an error that says what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgepeft.errors import WrongClassNames
from edgepeft.sources.errors import SourceError
from edgepeft.sources.load import load_source
from edgepeft.sources.source import Source
from tests.support.bundles import write_model
from tests.support.networks import tiny_gpt2, tiny_vit


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier with two classes and a tokenizer; not to be changed."""
    return write_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    """A copy of it that the test may change."""
    folder = tmp_path / "bert"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _refused(source: str | Path, **settings: object) -> SourceError:
    with pytest.raises(SourceError) as failure:
        load_source(source, **settings)
    assert failure.value.hint is not None
    return failure.value


# Model directories


def test_a_directory_knows_its_task_and_carries_its_tokenizer(bert: Path) -> None:
    """A text classifier comes with cross-entropy, its classes, its tokenizer, and its longest text."""
    source = load_source(bert)
    assert type(source.model).__name__ == "BertForSequenceClassification"
    assert source.loss == "cross_entropy"
    assert source.classes == ("no", "yes")
    assert set(source.files) == {"tokenizer.json"}
    assert source.text is not None
    assert source.text.max_length == 32, "the model's 32 positions are fewer than the default of 128"
    assert source.dimension_max == {"sequence": 32}
    assert isinstance(source.example_inputs, dict)
    assert set(source.example_inputs) == {"input_ids", "attention_mask"}


def test_texts_of_one_length_have_no_free_axis(bert: Path) -> None:
    """For models that run for one length alone; the number of examples stays free."""
    source = load_source(bert, max_length=6, fixed_length=True)
    assert source.dynamic_axes is not None and source.dynamic_axes["input_ids"] == {0: "batch"}
    assert source.example_inputs["input_ids"].shape == (2, 6)
    assert "sequence" not in source.dimension_max


def test_one_class_is_not_a_number_to_predict(bert: Path) -> None:
    """transformers takes a head of one score for a regression."""
    with pytest.raises(WrongClassNames, match="only one class") as failure:
        load_source(bert, classes=["spam"])
    assert "--classes other,spam" in str(failure.value.hint)


def test_new_classes_make_a_new_head(bert: Path) -> None:
    """The head has as many outputs, and the same seed gives the same initial values."""
    first, same, other = (load_source(bert, classes=["a", "b", "c"], seed=seed) for seed in (1, 1, 2))
    assert first.classes == ("a", "b", "c")
    assert first.new_head and not load_source(bert).new_head
    weights = [source.model.classifier.weight for source in (first, same, other)]
    assert weights[0].shape == (3, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_texts_can_be_cut_shorter(bert: Path) -> None:
    """``max_length`` applies, but never beyond the model's limit."""
    lengths = {given: load_source(bert, max_length=given).text for given in (7, 500)}
    assert {given: text.max_length for given, text in lengths.items() if text} == {7: 7, 500: 32}


def test_positions_counted_from_the_padding_on_are_fewer(tmp_path: Path) -> None:
    """RoBERTa with a table of 20 positions and padding id 1 takes texts of 18 tokens, and runs at that length."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    model = RobertaForSequenceClassification(RobertaConfig(**sizes, max_position_embeddings=20, pad_token_id=1)).eval()
    model.save_pretrained(tmp_path / "roberta")
    source = load_source(tmp_path / "roberta")
    assert source.dimension_max == {"sequence": 18}
    ids = torch.full((1, 18), 5)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


def test_a_directory_without_architectures_needs_the_task(copy: Path) -> None:
    """A pretrained encoder does not state its task; the user does."""
    _configure(copy, architectures=None)
    error = _refused(copy)
    assert error.code == "unknown-task"
    assert "text-classification" in str(error.hint)
    assert load_source(copy, task="token-classification").loss == "cross_entropy"


def test_an_unknown_task_lists_those_that_exist(bert: Path) -> None:
    """A task that does not exist is refused before anything is loaded."""
    error = _refused(bert, task="summarization")
    assert error.code == "unknown-task"
    assert "causal-lm" in str(error)


def test_a_language_model_is_trained_on_the_next_token(tmp_path: Path) -> None:
    """GPT-2 comes with the causal loss, and with no classes."""
    tiny_gpt2().save_pretrained(tmp_path)
    source = load_source(tmp_path)
    assert (source.loss, source.classes) == ("causal_lm", None)
    assert source.dimension_max == {"sequence": 40}
    assert source.files == {}


def test_a_broken_processor_is_an_error_of_the_source(tmp_path: Path) -> None:
    """A preprocessor_config.json that is no JSON is named."""
    tiny_vit().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json" in str(_refused(tmp_path))


@pytest.mark.parametrize("content", [None, "{", "[]", '"bert"'])
def test_a_directory_without_a_configuration_is_refused(content: str | None, tmp_path: Path) -> None:
    """A missing, broken or odd config.json means: no model directory."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert _refused(tmp_path).code == "no-model-directory"


def test_missing_weights_are_an_error_of_the_source(copy: Path) -> None:
    """Without model.safetensors the error of transformers is shown, and nothing is downloaded."""
    (copy / "model.safetensors").unlink()
    error = _refused(copy)
    assert error.code == "source-does-not-load"
    assert "model.safetensors" in str(error)


def test_damaged_weights_are_an_error_of_the_source(copy: Path) -> None:
    """So are weights that are cut off."""
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert _refused(copy).code == "source-does-not-load"


def test_weights_of_another_model_are_an_error_of_the_source(copy: Path) -> None:
    """New classes make a new head, never a new embedding: weights that do not fit the configuration are refused."""
    _configure(copy, vocab_size=50)
    assert _refused(copy).code == "source-does-not-load"
    error = _refused(copy, classes=["a", "b", "c"])
    assert error.code == "source-does-not-load"
    assert "word_embeddings" in str(error)


def test_a_model_of_unknown_kind_is_an_error_of_the_source(copy: Path) -> None:
    """A ``model_type`` that transformers does not know."""
    _configure(copy, model_type="from-the-future")
    assert _refused(copy).code == "source-does-not-load"


# Files and functions

FUNCTION = """
import torch
from torch import nn

def make():
    return nn.Linear(3, 2), {"input": torch.zeros(2, 3)}

def bare():
    return nn.Linear(3, 2)

def swapped():
    return {"input": torch.zeros(2, 3)}, nn.Linear(3, 2)

def failing():
    raise ZeroDivisionError("on purpose")

def needs(argument):
    return make()

value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``own_networks.py``, which is the working directory."""
    (tmp_path / "own_networks.py").write_text(FUNCTION)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["own_networks.py:make", "own_networks:make", "package.inner:make"])
def test_a_function_is_a_source(name: str, module: Path) -> None:  # noqa: ARG001  (it changes the directory)
    """By file or by module in the working directory; the seed makes its first values repeatable."""
    first, second = load_source(name, seed=5), load_source(name, seed=5)
    assert isinstance(first.model, nn.Linear)
    assert torch.equal(first.model.weight, second.model.weight)
    assert set(first.example_inputs) == {"input"}


def test_a_file_elsewhere_is_a_source(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path works from any directory."""
    monkeypatch.chdir("/")
    assert isinstance(load_source(f"{module / 'own_networks.py'}:make", classes=["a", "b"]), Source)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("own_networks:absent", "no-such-source"),
        ("absent_module:make", "no-such-source"),
        ("absent.py:make", "no-such-source"),
        ("own_networks:bare", "bad-source"),
        ("own_networks:swapped", "bad-source"),
        ("own_networks:value", "bad-source"),
        ("own_networks:needs", "bad-source"),
        ("own_networks:failing", "bad-source"),
    ],
)
def test_functions_that_do_not_give_a_model_are_refused(
    name: str,
    reference: str,
    module: Path,  # noqa: ARG001
) -> None:
    """Absent, failing, or with another result: the source is named."""
    error = _refused(name)
    assert error.code == reference
    assert name in str(error)


def test_a_path_where_nothing_is_is_refused(tmp_path: Path) -> None:
    """For a directory as for an .onnx file, with the path in the message."""
    for path in (tmp_path / "absent", tmp_path / "absent.onnx", Path("bert-base-uncased")):
        error = _refused(path)
        assert error.code == "no-such-source"
        assert str(path) in str(error)


def test_an_onnx_file_is_accepted_as_it_is(tmp_path: Path) -> None:
    """It is read later, with the names of the trained parameters."""
    (tmp_path / "model.onnx").write_bytes(b"")
    assert load_source(tmp_path / "model.onnx").model == tmp_path / "model.onnx"
