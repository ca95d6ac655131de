"""Methods that Hugging Face ``peft`` attaches: torch's losses on the device, and adapters that peft loads again."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.methods import attach, by_name
from edgepeft.methods.errors import MethodError
from edgepeft.methods.support.prompt_outputs import align_outputs
from edgepeft_export.forward.torch_source.module import from_torch
from edgepeft_runtime.errors import SettingError
from tests.support.networks import NETWORKS, Network
from tests.support.training import Trained, check_merged, outputs, torch_losses, train_both

SMALL = {
    "rslora": {"rank": 2},
    "dora": {"rank": 2},
    "ia3": {},
    "vera": {"rank": 4},
    "norm": {},
    "prefix": {"tokens": 3},
    "prompt": {"tokens": 3},
    "ptuning": {"tokens": 3},
}


def _attached(method: str, network: Network, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return attach(by_name(method, **{**SMALL[method], **settings}), network.model())


def _check_peft(trained: Trained, network: Network, folder: Path) -> Path:
    """The update as a PEFT adapter has the logits of the model torch trained."""
    from peft import PeftModel

    adapter = edgepeft.merge(trained.bundle, trained.update, to="peft", out=folder / "adapter")
    loaded = align_outputs(PeftModel.from_pretrained(network.model(), adapter).eval())
    inputs, _ = next(network.batches(1))
    expected = outputs(trained.model, inputs)
    found = outputs(loaded, inputs)
    assert torch.allclose(found[:, -expected.shape[1] :], expected, atol=1e-4)  # peft leaves a prompt's logits in front
    return adapter


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("name", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_method_trains_and_comes_back(method: str, name: str, tmp_path: Path) -> None:
    """Five steps with torch's losses, then the same logits on the device, in ONNX, and in peft."""
    network = NETWORKS[name]
    trained = train_both(_attached(method, network), network, tmp_path)
    check_merged(trained, network, tmp_path)
    _check_peft(trained, network, tmp_path)


def test_a_prefix_may_be_computed_by_a_network(tmp_path: Path) -> None:
    """peft gets the prefix as computed, of keys and values of all layers."""
    network = NETWORKS["llama"]
    trained = train_both(_attached("prefix", network, projection=True, hidden=8), network, tmp_path)
    _check_peft(trained, network, tmp_path)


def test_the_norm_of_dora_takes_part_in_no_gradient(tmp_path: Path) -> None:
    """With a large learning rate a gradient through the norm would show; torch detaches it, and so does the export."""
    network = NETWORKS["llama"]
    trained = train_both(_attached("dora", network), network, tmp_path, steps=8, lr=0.5)
    check_merged(trained, network, tmp_path)


def test_what_a_model_detaches_gets_no_gradient() -> None:
    """A straight-through estimator: forward rounds, backward does not."""

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.3, 1.6]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (self.weight + (self.weight.round() - self.weight).detach())

    from edgepeft_export.autodiff import differentiate

    forward = from_torch(Rounded(), torch.ones(2, 2))
    graph = forward.model.graph
    weight = next(value for value in graph.inputs if value.name == "weight")
    gradient = differentiate(graph, graph.outputs[0], [weight])[weight]
    assert gradient.producer() is not None
    assert "Round" not in {node.op_type for node in graph if node.name and "grad" in node.name}


def test_a_prefix_enters_by_either_name_of_the_cache() -> None:
    """peft calls it past_key_values, transformers since 5.24 ``cache``; a copy of the model feeds its own layers."""
    model = _attached("prefix", NETWORKS["bert"]).eval()
    inputs, _ = next(NETWORKS["bert"].batches(1))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = outputs(model, inputs)
        copied.base_model.bert.encoder.layer[0].attention.self.query.weight.zero_()
        assert not torch.equal(outputs(copied, inputs), before)
        assert torch.equal(outputs(model, inputs), before)
        model.prompt_encoder["default"].embedding.weight.zero_()
    assert not torch.equal(outputs(model, inputs), before)


def test_a_model_with_adapters_can_be_saved_whole() -> None:
    """``torch.save`` of the model, copies of it, and the attributes of the layers inside peft's."""
    model = _attached("rslora", NETWORKS["bert"]).eval()
    inputs, _ = next(NETWORKS["bert"].batches(1))
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for again in (torch.load(stored, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(outputs(again, inputs), outputs(model, inputs))
        query = again.base_model.model.bert.encoder.layer[0].attention.self.query
        assert query.in_features == query.base_layer.in_features
        query.lora_B["default"].weight.data.fill_(1.0)
        assert not torch.equal(outputs(again, inputs), outputs(model, inputs))


def test_a_prefix_needs_a_cache_of_keys_and_values() -> None:
    """ALBERT keeps none: refused when the prefix is attached, not as inputs that do not fit."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    config = AlbertConfig(
        vocab_size=9,
        embedding_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    with pytest.raises(MethodError, match="keys and values") as caught:
        attach(by_name("prefix", tokens=2), AlbertForSequenceClassification(config))
    assert caught.value.code == "method-does-not-fit"


@pytest.mark.parametrize("method", ["prefix", "prompt", "ptuning"])
@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_a_prompt_needs_tokens(method: str, name: str) -> None:
    """A model that reads images is refused, and the error names what would fit."""
    with pytest.raises(MethodError, match="reads tokens"):
        _attached(method, NETWORKS[name])


def test_a_norm_that_is_not_there_is_refused() -> None:
    """An MLP has none."""
    with pytest.raises(MethodError, match="no norm"):
        attach(by_name("norm"), nn.Sequential(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prompt", {"tokens": 0}),
        ("ptuning", {"encoder": "gru"}),
        ("vera", {"rank": 0}),
        ("dora", {"rank": 0}),
    ],
)
def test_settings_out_of_range_are_refused(method: str, settings: dict[str, object]) -> None:
    """The error names the valid values."""
    with pytest.raises(SettingError, match="out of range"):
        _attached(method, NETWORKS["bert"], **settings)


def test_a_prompt_uses_positions_from_the_input(tmp_path: Path) -> None:
    """With a prompt of 3, BERT's 40 learned positions leave 37 for the text."""
    network = NETWORKS["bert"]
    source = edgepeft.Source(network.model(), network.example(), dimension_max={"sequence": 40})
    bundle = edgepeft.prepare(source, method=by_name("prompt", tokens=3), out=tmp_path / "b").bundle
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    assert manifest["dimensions"]["sequence"]["max"] == 37


@pytest.mark.parametrize(
    "kind",
    [
        "LORA",
        "PROMPT_TUNING",
        pytest.param("IA3", marks=pytest.mark.slow),
        pytest.param("PREFIX_TUNING", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_trained_elsewhere_resumes_here_and_back(kind: str, tmp_path: Path) -> None:
    """peft trains and saves; the device trains on; peft loads it with the logits torch would have, settings kept."""
    from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    network = NETWORKS["bert"]
    config = {
        "LORA": LoraConfig(
            task_type="SEQ_CLS",
            r=3,
            lora_alpha=5,
            target_modules=["query", "intermediate.dense"],
            modules_to_save=["classifier", "pooler"],
        ),
        "IA3": IA3Config(task_type="SEQ_CLS"),
        "PREFIX_TUNING": PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
        "PROMPT_TUNING": PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    }[kind]
    elsewhere = align_outputs(get_peft_model(network.model(), config))  # peft alone cannot run BERT's prefix
    list(torch_losses(elsewhere, network, 3, 0.05))
    elsewhere.save_pretrained(tmp_path / "first")
    prompts = "TUNING" in kind  # peft loads these for inference only; what trains is marked by hand
    loaded = align_outputs(PeftModel.from_pretrained(network.model(), tmp_path / "first", is_trainable=not prompts))
    for part, parameter in loaded.named_parameters():
        if prompts and ("prompt_encoder" in part or "modules_to_save" in part):
            parameter.requires_grad_(True)
    trained = train_both(loaded, network, tmp_path)
    adapter = _check_peft(trained, network, tmp_path)
    before, after = (
        json.loads((folder / "adapter_config.json").read_text("utf-8")) for folder in (tmp_path / "first", adapter)
    )
    for field in ("r", "lora_alpha", "peft_type", "task_type", "num_virtual_tokens"):
        assert after.get(field) == before.get(field)
    for field in ("target_modules", "modules_to_save"):
        assert set(after.get(field) or ()) == set(before.get(field) or ())
