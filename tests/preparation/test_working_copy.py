"""Preparing leaves the user's module unchanged. An adapter that it already has is trained further or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft.methods import by_name
from edgepeft.methods.errors import MethodError
from edgepeft.methods.registry import METHODS
from edgepeft.preparation.attachment import Attachment, attach_to_copy
from edgepeft.sources.source import Source
from edgepeft.sources.working_copy import working_copy
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import EdgepeftError
from tests.support.networks import NETWORKS

SETTINGS: dict[str, dict[str, Any]] = {"freeze": {"last_blocks": 1}, "pruned": {"weights": ("bert.encoder.*",)}}


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a caller could see of a module."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "storage": {name: tensor.data_ptr() for name, tensor in model.state_dict().items()},
        "flags": {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "modules": {name: (id(m), type(m), m.training, set(vars(m))) for name, m in model.named_modules()},
        "hooks": {name: len(m._forward_hooks) for name, m in model.named_modules()},
        "config": model.config.to_dict() if hasattr(model, "config") else None,
    }


def _assert_same(before: dict[str, Any], model: nn.Module) -> None:
    after = _snapshot(model)
    state = before.pop("state")
    assert all(torch.equal(tensor, state[name]) for name, tensor in after.pop("state").items())
    assert after == before


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_attached_to_a_copy(method: str) -> None:
    """Values, flags, modules, training modes, hooks and configuration are those of before; frozen storage is shared."""
    model = NETWORKS["bert"].model().train()
    model.bert.pooler.requires_grad_(False)
    before = _snapshot(model)
    how = Attachment(by_name(method, **SETTINGS.get(method, {})))
    attached = attach_to_copy(Source(model, NETWORKS["bert"].example()), model, how).module
    _assert_same(before, model)
    shared = {tensor.data_ptr() for tensor in attached.state_dict().values()}
    assert model.bert.embeddings.word_embeddings.weight.data_ptr() in shared


def test_pruning_does_not_touch_the_caller_s_weights() -> None:
    """Zeros and cuts are the copy's alone."""
    model = NETWORKS["bert"].model()
    before = _snapshot(model)
    for prune in (edgepeft.Pruning(weights=0.5), edgepeft.Pruning(heads=0.5)):
        attach_to_copy(Source(model, NETWORKS["bert"].example()), model, Attachment("head", prune=prune))
    _assert_same(before, model)


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(x)))


ROWS = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def test_a_second_call_writes_the_same_bundle(tmp_path: Path) -> None:
    """Nothing is left of the first one, and the random values of the adapter are drawn again."""
    model = Rows().train()
    before = _snapshot(model)
    for name in "ab":
        edgepeft.prepare(model, ROWS, method=edgepeft.Lora(rank=2), out=tmp_path / name)
    _assert_same(before, model)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}


def test_functions_that_enclose_the_module_see_the_copy() -> None:
    """A replaced forward and a hook compute with the copy's layers. State of earlier calls is copied."""
    model = Rows()
    model.forward = lambda x: model.inner(x)  # type: ignore[method-assign]
    model.outer.register_forward_hook(lambda _module, _inputs, output: output + model.inner.bias.sum())
    model.last = model(ROWS)
    copied = working_copy(model, share=False)
    with torch.no_grad():
        copied.inner.weight.zero_(), copied.inner.bias.fill_(2.0)
        assert torch.equal(copied(ROWS), torch.full((2, 4), 2.0))
        assert torch.allclose(
            copied.outer(ROWS) - nn.functional.linear(ROWS, copied.outer.weight, copied.outer.bias), torch.tensor(8.0)
        )
    assert not torch.equal(model(ROWS), copied(ROWS))


def test_what_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    """A module that contains an open file is refused with a hint."""
    model = Rows()
    model.log = (tmp_path / "log").open("w")
    with pytest.raises(EdgepeftError) as caught:
        edgepeft.prepare(model, ROWS, method="head", out=tmp_path / "b")
    assert caught.value.code == "model-not-copied" and caught.value.hint
    model.log.close()


# Adapters that are there


def _adapted(**settings: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["inner"], init_lora_weights=False, **settings)
    return get_peft_model(Rows(), config)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (None, {}),
        ("lora", {"lora_bias": True}),
        (edgepeft.Lora(rank=2, target_modules=("inner",)), {}),
    ],
    ids=["flags", "name-bias", "settings"],
)
def test_an_adapter_that_is_there_trains_on(method: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """The device starts from it, trains it and nothing else, and peft gets it back."""
    from peft import PeftModel
    from safetensors.numpy import load_file

    model = _adapted(**settings)
    before = _snapshot(model)
    expected = model(ROWS).detach().numpy()
    bundle = edgepeft.prepare(model, ROWS, method=method, out=tmp_path / "b").bundle
    _assert_same(before, model)
    with Trainer.open(bundle) as trainer:
        assert {name.partition("lora_")[1] for name in trainer.parameters()} == {"lora_"}
        np.testing.assert_allclose(trainer.predict({"x": ROWS.numpy()})["output"], expected, atol=1e-6)
        trainer.step({"x": ROWS.numpy(), "labels": np.array([0, 1])}, lr=0.1)
        trained = trainer.predict({"x": ROWS.numpy()})["output"]
        update = trainer.save_update(tmp_path / "u.safetensors")
    adapter = edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")
    assert len(load_file(adapter / "adapter_model.safetensors")) == 2 + len(settings)  # B may have a bias
    plain = Rows()
    plain.load_state_dict(
        {
            name.removeprefix("base_model.model.").replace("base_layer.", ""): tensor
            for name, tensor in model.state_dict().items()
            if "lora_" not in name
        }
    )
    loaded = PeftModel.from_pretrained(plain, adapter)
    np.testing.assert_allclose(loaded(ROWS).detach().numpy(), trained, atol=1e-6)


OTHERS: dict[str, Callable[[], Any]] = {
    "rank": lambda: edgepeft.Lora(rank=3),
    "targets": lambda: edgepeft.Lora(rank=2, target_modules=("outer",)),
    **{name: (lambda name=name: name) for name in METHODS if name not in ("lora", "freeze")},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_method_with_an_adapter_is_refused(other: str) -> None:
    """Neither thrown away nor set free: the error names the adapter and both ways out."""
    model = _adapted()
    with pytest.raises(MethodError) as caught:
        attach_to_copy(Source(model, ROWS), model, Attachment(OTHERS[other]()))
    assert caught.value.code == "adapter-exists"
    assert "default (LORA)" in str(caught.value.context) and "merge_and_unload" in str(caught.value.hint)


@pytest.mark.parametrize("method", [None, "lora"])
def test_a_frozen_adapter_stays_frozen(method: str | None) -> None:
    """peft loads adapters for inference by default; that is said, and how to load one for training."""
    model = _adapted().requires_grad_(False)
    with pytest.raises(MethodError, match="frozen") as caught:
        attach_to_copy(Source(model, ROWS), model, Attachment(method))
    assert "is_trainable=True" in str(caught.value.hint)


def test_pairs_of_our_own_are_adapters_too() -> None:
    """A bottleneck, and LoRA on a grouped convolution, which peft does not support."""
    grouped = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 1))
    for method, model in (("adapter", Rows()), (edgepeft.Lora(rank=1, target_modules=("0",)), grouped)):
        attached = attach_to_copy(Source(model, ROWS), model, Attachment(method)).module
        with pytest.raises(MethodError) as caught:
            attach_to_copy(Source(attached, ROWS), attached, Attachment("lora"))
        assert caught.value.code == "adapter-exists"


def test_freeze_may_name_an_adapter() -> None:
    """B alone of the pair that is there."""
    model = _adapted()
    attached = attach_to_copy(Source(model, ROWS), model, Attachment(edgepeft.Freeze(train=("*lora_B*",)))).module
    assert [name for name, p in attached.named_parameters() if p.requires_grad] == [
        "base_model.model.inner.lora_B.default.weight"
    ]


class Reader(nn.Module):
    """Reads the sizes of its convolutions, as Whisper and MobileNetV2 do."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, stride=2, groups=groups)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.conv.kernel_size[0] - self.conv.stride[0] + self.conv.weight.shape[1] * 0
        return self.fc(self.conv(nn.functional.pad(x, (left, 0))).mean(-1))


@pytest.mark.parametrize("groups", [1, 2])
def test_adapted_layers_answer_for_those_inside(groups: int, tmp_path: Path) -> None:
    """Also deep copies of them. A missing attribute is an AttributeError."""
    model = Reader(groups)
    edgepeft.prepare(model, torch.zeros(2, 4, 8), method=edgepeft.Lora(rank=1), out=tmp_path / "b")
    attached = copy.deepcopy(edgepeft.methods.attach(edgepeft.Lora(rank=1), Reader(groups)))
    conv = next(module for name, module in attached.named_modules() if name.endswith("conv"))
    assert conv.stride == (2,) and conv.groups == groups
    with pytest.raises(AttributeError):
        _ = conv.nothing


def test_experts_are_exported_as_one_batched_matmul(tmp_path: Path) -> None:
    """A mixture of experts as transformers 5 makes it, with LoRA where peft puts it by default: torch's loss."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        max_position_embeddings=16,
    )
    model = MixtralForCausalLM(config).eval()
    ids = torch.randint(0, 31, (3, 5), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    before = _snapshot(model)
    bundle = edgepeft.prepare(model, inputs, method="lora", loss="causal_lm", out=tmp_path / "b").bundle
    _assert_same(before, model)
    with Trainer.open(bundle) as trainer:
        loss = trainer.step({**{name: array.numpy() for name, array in inputs.items()}, "labels": ids.numpy()})
    assert loss == pytest.approx(model(**inputs, labels=ids).loss.item(), rel=1e-5)
