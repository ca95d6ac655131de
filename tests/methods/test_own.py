"""The project's own methods on torch modules: bottleneck adapters, one LoRA for all blocks, pruned weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import edgepeft
from edgepeft.compress import fix_masks
from edgepeft.methods import Method, attach, by_name
from edgepeft.methods.errors import MethodError
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Trainer
from edgepeft_runtime.errors import SettingError
from edgepeft_runtime.files.tensorfile import read_tensors
from tests.support.networks import NETWORKS, Network, to_numpy
from tests.support.training import check_merged, outputs, train_both
from tests.zoo import convolution, recurrent, transformers

BERT, CNN = NETWORKS["bert"], NETWORKS["cnn"]


def _checked(method: Method, network: Network, folder: Path) -> nn.Module:
    """Trained on both sides and merged into ONNX; the model as torch has it."""
    torch.manual_seed(0)
    trained = train_both(attach(method, network.model()), network, folder)
    check_merged(trained, network, folder)
    return trained.model


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby", "parallel"])
def test_an_adapter_starts_as_nothing_and_trains(placement: str, tmp_path: Path) -> None:
    """The model's outputs are the same at first; two adapters per block for Houlsby, one for the others."""
    method = by_name("adapter", placement=placement, reduction=4, activation="gelu")
    fresh = attach(method, BERT.model()).eval()
    inputs, _ = next(BERT.batches(1))
    assert torch.allclose(outputs(fresh, inputs), outputs(BERT.model().eval(), inputs), atol=1e-6)
    downs = [name for name, _ in fresh.named_parameters() if name.endswith("down.weight")]
    assert len(downs) == (4 if placement == "houlsby" else 2)
    assert all(fresh.get_parameter(name).shape == (8, 32) for name in downs)
    _checked(method, BERT, tmp_path)


@pytest.mark.parametrize(
    "network",
    [
        CNN,
        recurrent.NETWORKS["gru"],
        pytest.param(transformers.NETWORKS["t5"], marks=pytest.mark.slow),
        pytest.param(transformers.NETWORKS["moe"], marks=pytest.mark.slow),
    ],
    ids=["cnn", "gru", "t5", "moe"],
)
def test_adapters_are_after_layers_of_every_kind(network: Network, tmp_path: Path) -> None:
    """1x1 kernels after convolutions, matrices after recurrent layers, attention in a network with experts."""
    _checked(by_name("adapter", reduction=4), network, tmp_path)


def test_one_lora_for_all_blocks(tmp_path: Path) -> None:
    """Two layers of two blocks have two pairs; peft has each under both names, and the same logits."""
    from peft import PeftModel

    torch.manual_seed(0)
    trained = train_both(attach(by_name("shared", rank=2), BERT.model()), BERT, tmp_path)
    check_merged(trained, BERT, tmp_path)
    assert len([name for name in read_tensors(trained.update).tensors if "lora_A" in name]) == 2
    adapter = edgepeft.merge(trained.bundle, trained.update, to="peft", out=tmp_path / "adapter")
    assert len([key for key in read_tensors(adapter / "adapter_model.safetensors").tensors if "lora_A" in key]) == 4
    loaded = PeftModel.from_pretrained(BERT.model(), adapter).eval()
    inputs, _ = next(BERT.batches(1))
    assert torch.allclose(outputs(loaded, inputs), outputs(trained.model, inputs), atol=1e-4)


def test_lora_adapts_convolutions_with_dilation_and_groups(tmp_path: Path) -> None:
    """Where peft's crashes or refuses: our own pairs next to its pairs."""
    network = convolution.NETWORKS["residual-cnn"]
    model = _checked(by_name("lora", rank=2), network, tmp_path)
    adapted = {name.split(".lora_A")[0].removeprefix("base_model.model.") for name, _ in model.named_parameters()}
    assert {"stem", "dilated", "grouped", "shortcut"} <= adapted
    assert model.get_submodule("base_model.model.grouped").lora_A.weight.shape == (8, 2, 3, 3)


def _masked() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    for layer in (model[0], model[2]):
        prune.random_unstructured(layer, "weight", amount=0.5)
    return model


def test_what_pruning_left_trains_and_zeros_stay(tmp_path: Path) -> None:
    """Masks of torch's pruning persist through AdamW with weight decay and merging. Half of each weight changes."""
    model = attach(by_name("pruned"), _masked())
    before = {name: getattr(model, name).weight.detach().clone() for name in ("0", "2")}
    bundle = edgepeft.prepare(
        model, torch.zeros(2, 10), optimizer=AdamW(lr=0.02, weight_decay=0.1), out=tmp_path / "b"
    ).bundle
    draw = np.random.default_rng(0)
    batch = {"input": draw.normal(size=(8, 10)).astype(np.float32), "labels": draw.integers(0, 3, 8)}
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step(batch) for _ in range(10)]
        update = trainer.save_update(tmp_path / "u.safetensors")
    assert losses[-1] < losses[0]
    model.load_state_dict(torch.load(edgepeft.merge(bundle, update, to="torch", out=tmp_path / "s.pt")), strict=False)
    fix_masks(model)
    for name, old in before.items():
        new = getattr(model, name).weight
        assert torch.equal(new == 0, old == 0)
        assert ((new != old) == (old != 0)).all()


@pytest.mark.parametrize("name", ["bert", "cnn"])
def test_pruned_models_train_as_in_torch(name: str, tmp_path: Path) -> None:
    """After ``compress.prune``, with the losses of torch."""
    from edgepeft.compress import Pruning
    from edgepeft.compress import prune as cut

    network = NETWORKS[name]
    model, _ = cut(network.model(), Pruning(weights=0.5))
    trained = train_both(attach(by_name("pruned"), model), network, tmp_path)
    check_merged(trained, network, tmp_path)


@pytest.mark.parametrize(
    ("method", "settings", "word"),
    [
        ("adapter", {"placement": "above"}, "out of range"),
        ("adapter", {"reduction": 0.5}, "out of range"),
        ("adapter", {"activation": "step"}, "out of range"),
        ("adapter", {"target_modules": ("nowhere",)}, "is named 'nowhere'"),
        ("pruned", {}, "is pruned"),
    ],
)
def test_what_does_not_fit_is_refused(method: str, settings: dict[str, object], word: str) -> None:
    """The error names what would fit."""
    with pytest.raises((MethodError, SettingError), match=word):
        attach(by_name(method, **settings), BERT.model())


def test_parallel_needs_a_feed_forward_part() -> None:
    """Experts are none."""
    with pytest.raises(MethodError, match="no feed-forward part"):
        attach(by_name("adapter", placement="parallel"), transformers.NETWORKS["moe"].model())


def test_the_row_of_padding_gets_no_gradient(tmp_path: Path) -> None:
    """A table that trains has a row for padding, which torch leaves unchanged. Batches here contain it."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(12, 6, padding_idx=3)
            self.head = nn.Linear(6, 5)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head((self.table(input_ids) * attention_mask[..., None]).mean(1))

    torch.manual_seed(0)
    network = BERT
    model = attach(by_name("full"), Words())
    ids = torch.tensor([[3, 4, 5], [6, 3, 3]])
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    bundle = edgepeft.prepare(model, example, loss=network.loss, out=tmp_path / "b").bundle
    with Trainer.open(bundle) as trainer:
        trainer.step(to_numpy(example, torch.tensor([0, 1])))
        row = trainer.parameters()["table.weight"][3]
    assert np.array_equal(row, model.table.weight[3].detach().numpy())
