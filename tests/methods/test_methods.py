"""Methods mark exactly the documented parameters, and an update becomes peft's own files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepeft.methods import IA3, Adapter, BitFit, Freeze, Full, Head, Lora, Method, Sift, attach, by_name
from edgepeft.methods.base import matches
from edgepeft.methods.errors import MethodError
from edgepeft.preparation.peft_format import peft_provenance
from edgepeft_export.errors import NothingTrains
from edgepeft_runtime.errors import SettingError
from edgepeft_runtime.files.tensorfile import read_tensors
from tests.support.networks import cnn, tiny_bert, tiny_gpt2, tiny_llama


def _marked(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _all(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


# What trains


def test_lora_trains_its_pairs_and_the_head_of_a_classifier() -> None:
    """On BERT: A and B of every query and value, and the classifier; nothing of the base."""
    model = attach(Lora(rank=4, target_modules=("query", "value")), tiny_bert())
    marked = _marked(model)
    pairs = {name for name in marked if "lora_" in name}
    assert len(pairs) == 2 * 2 * 2
    assert all(".query." in name or ".value." in name for name in pairs)
    assert {name.rpartition("default.")[2] for name in marked - pairs} == {"weight", "bias"}
    assert all("classifier.modules_to_save" in name for name in marked - pairs)
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if "lora_A" in name}
    assert shapes == {(4, 32)}


def test_lora_leaves_layers_before_the_classifier_to_the_head() -> None:
    """peft trains whole whatever ends with the head's name: DistilBERT's ``pre_classifier`` gets no pair besides."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=48, vocab_size=99)
    marked = _marked(attach(Lora(rank=4), DistilBertForSequenceClassification(config)))
    heads = {name for name in marked if "classifier" in name}
    assert len(heads) == 4 and all("modules_to_save" in name for name in heads)
    assert marked - heads and all("lora_" in name for name in marked - heads)


def test_lora_of_a_language_model_leaves_its_head_frozen() -> None:
    """``lm_head`` is tied to the embedding in many models, so it trains only where it is asked for."""
    assert all("lora_" in name for name in _marked(attach(Lora(target_modules=("c_attn",)), tiny_gpt2())))


def test_lora_sets_alpha_as_twice_the_rank() -> None:
    """Unless it is given."""
    for alpha, expected in ((None, 6), (1.5, 1.5)):
        model = attach(Lora(rank=3, alpha=alpha, target_modules=("q_proj",)), tiny_llama())
        assert model.peft_config["default"].lora_alpha == expected


def test_lora_adapts_convolutions() -> None:
    """Convolutions of images have pairs too."""
    marked = _marked(attach(Lora(rank=2, target_modules=("stem", "pointwise")), cnn()))
    assert {name.split(".")[2] for name in marked} == {"stem", "pointwise", "classifier"}


def test_bitfit_trains_biases_and_the_head() -> None:
    """On BERT: everything called bias, norms' included, and the classifier."""
    model = attach(BitFit(), tiny_bert())
    assert _marked(model) == {n for n in _all(model) if n.endswith("bias") or n.startswith("classifier.")}


def test_bitfit_without_a_head_trains_biases_alone() -> None:
    """``head=()`` leaves the classifier's weight frozen."""
    model = attach(BitFit(head=()), cnn())
    assert _marked(model) == {name for name in _all(model) if name.endswith("bias")}


def test_bitfit_is_refused_where_there_are_no_biases() -> None:
    """Llama has none: the error says so and names working methods."""
    with pytest.raises(MethodError) as failure:
        attach(BitFit(), tiny_llama())
    assert failure.value.code == "no-biases"
    assert "lora" in str(failure.value)


@pytest.mark.parametrize(("network", "head"), [(tiny_bert, "classifier"), (cnn, "classifier"), (tiny_llama, "lm_head")])
def test_head_trains_the_head_alone(network: Callable[[], nn.Module], head: str) -> None:
    """The head is found by the names that transformers and torchvision use."""
    model = attach(Head(), network())
    assert _marked(model) == {name for name in _all(model) if name.startswith(f"{head}.")} != set()


def test_a_head_that_is_not_found_is_named_by_the_user() -> None:
    """A model without a known head lists its modules; naming one of them works."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(MethodError) as failure:
        attach(Head(), model)
    assert failure.value.code == "no-head"
    assert "0, 1" in str(failure.value)
    assert _marked(attach(Head(modules=("1",)), model)) == {"1.weight", "1.bias"}


def test_freeze_chooses_by_pattern() -> None:
    """Patterns match whole names, plain names a parameter or a module with all its parameters; ``freeze`` wins."""
    train = ("bert.encoder.layer.1", "*.LayerNorm.*", "classifier.bias")
    model = attach(Freeze(train=train, freeze=("*.1.attention.*",)), tiny_bert())
    expected = {
        name
        for name in _all(model)
        if (name.startswith("bert.encoder.layer.1.") or ".LayerNorm." in name or name == "classifier.bias")
        and ".1.attention." not in name
    }
    assert _marked(model) == expected
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in expected


def test_freeze_without_train_trains_all_the_rest() -> None:
    """Only ``freeze`` given: everything else trains."""
    model = attach(Freeze(freeze=("stem", "norm*")), cnn())
    assert _marked(model) == {name for name in _all(model) if not name.startswith(("stem.", "norm"))}


def test_full_trains_everything() -> None:
    """Whatever was frozen before."""
    model = cnn().requires_grad_(False)
    assert _marked(attach(Full(), model)) == _all(model)


@pytest.mark.parametrize("method", [BitFit(), Head(), Full(), Freeze(train=("classifier",))], ids=lambda m: m.name)
def test_methods_forget_what_was_marked_before(method: Method) -> None:
    """The same method on a model that trained otherwise marks the same."""
    fresh, other = cnn(), cnn()
    for index, parameter in enumerate(other.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    assert _marked(attach(method, fresh)) == _marked(attach(method, other))


# What does not fit


@pytest.mark.parametrize(
    ("method", "near"),
    [
        (Freeze(train=("encoder.layer.7",)), "bert.encoder.layer.1"),
        (Freeze(train=("classifier",), freeze=("bert.pooler.wieght",)), "bert.pooler"),
        (Head(modules=("score",)), "Known names: bert"),
        (BitFit(head=("clasifier",)), "'classifier'"),
        (Lora(target_modules=("query", "vlaue")), "'value'"),
        (Lora(target_modules=("query",), modules_to_save=("Classifier",)), "'classifier'"),
        (Adapter(target_modules=("*.dense", "*.densse")), "dense"),
        (IA3(target_modules=("query",), feedforward_modules=("querry",)), "'query'"),
        (Sift(weights=("query", "*.keey.*")), "key"),
    ],
)
def test_a_name_that_means_nothing_is_refused(method: Method, near: str) -> None:
    """A misspelt name is an error with a suggestion, even if other names match, and marks nothing."""
    model = tiny_bert()
    before = _marked(model)
    with pytest.raises(MethodError) as failure:
        attach(method, model)
    assert failure.value.code == "no-such-name"
    assert near.lower() in str(failure.value).lower()
    assert _marked(model) == before


def test_freezing_everything_is_refused() -> None:
    """If nothing is left to train, it is an error of the method."""
    with pytest.raises(NothingTrains) as failure:
        attach(Freeze(freeze=("*",)), cnn())
    assert failure.value.code == "nothing-trains"


def test_lora_on_missing_modules_lists_the_existing_ones() -> None:
    """The names that would work are in the message."""
    with pytest.raises(MethodError) as failure:
        attach(Lora(target_modules=("q_proj",)), tiny_bert())
    assert failure.value.code == "no-such-name"
    assert "query" in str(failure.value)


@pytest.mark.parametrize(
    ("name", "settings", "reference"),
    [
        ("lora", {"rank": 0}, "bad-setting"),
        ("lora", {"r": 8}, "unknown-setting"),
        ("freeze", {}, "method-setting"),
        ("adalora", {}, "unknown-name"),
    ],
)
def test_settings_that_do_not_exist_or_fit_are_refused(name: str, settings: dict[str, object], reference: str) -> None:
    """Unknown methods, unknown settings and settings out of range are errors with a hint."""
    with pytest.raises((MethodError, SettingError)) as failure:
        attach(by_name(name, **settings), cnn())
    assert failure.value.code == reference
    assert failure.value.hint is not None


@pytest.mark.parametrize("name", ["lora", "bitfit", "head", "freeze", "full"])
def test_methods_know_their_name(name: str) -> None:
    """The provenance of an update names a method like the command."""
    assert by_name(name).name == name


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("encoder.layer.1", "encoder.layer.1.weight", True),
        ("encoder.layer.1", "encoder.layer.10.weight", False),
        ("*.bias", "encoder.bias", True),
        ("*.bias", "encoder.bias_ih", False),
        ("layer.?", "layer.1", True),
        ("Layer", "layer.weight", False),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    """Layer 1 is not layer 10, and case counts."""
    assert matches(name, pattern) is fits


# What peft saves


def _save(model: nn.Module, folder: Path) -> dict[str, np.ndarray]:
    model.save_pretrained(folder)
    return dict(read_tensors(folder / "adapter_model.safetensors").tensors)


def test_the_provenance_names_the_keys_that_peft_saves(tmp_path: Path) -> None:
    """By parameter, the key of the same values in ``save_pretrained``'s file, the head included; and the settings."""
    model = attach(Lora(rank=2, target_modules=("query", "value")), tiny_bert())
    with torch.no_grad():  # no two tensors alike, so that a mix-up shows
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.fill_(number + 1)
    provenance = peft_provenance(model)["peft"]
    saved = _save(model, tmp_path)
    assert set(provenance["keys"]) == _marked(model)
    assert set(provenance["keys"].values()) == set(saved)
    values = dict(model.named_parameters())
    for parameter, key in provenance["keys"].items():
        np.testing.assert_array_equal(values[parameter].detach().numpy(), saved[key], err_msg=parameter)
    assert provenance["config"]["r"] == 2
    assert provenance["config"]["peft_type"] == "LORA"
    assert sorted(provenance["config"]["target_modules"]) == ["query", "value"]


def test_the_provenance_of_another_model_is_empty() -> None:
    """Methods that are not peft's leave nothing for peft to load."""
    assert peft_provenance(attach(BitFit(), cnn())) == {}
