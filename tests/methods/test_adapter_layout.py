"""What attached layers declare: their products are those of the layers, roles are those of modules, not of names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from edgepeft.aggregation.pairs import PairTensors
from edgepeft.methods.lora import Dora, Lora, RsLora
from edgepeft.methods.prompts import Prefix, Prompt
from edgepeft.methods.pruned import Pruned
from edgepeft.methods.shared import Shared
from edgepeft.methods.support.declaration import layout_of, roles_of
from edgepeft.methods.support.existing import attach
from tests.support.networks import NETWORKS


class Experts(nn.Module):
    """Three matrices in one parameter [experts, out, in], as mixtures of experts keep them."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.weight = nn.Parameter(torch.randn(3, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("eoi,bi->beo", self.weight, x)


def _peft(layer: nn.Module, **settings: object) -> nn.Module:
    model: nn.Module = get_peft_model(nn.Sequential(layer), LoraConfig(r=2, lora_alpha=6, **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return model


ZERO = {"target_modules": ["0"]}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: _peft(nn.Linear(6, 4), **ZERO),
    "rslora": lambda: _peft(nn.Linear(6, 4), use_rslora=True, **ZERO),
    "pattern": lambda: _peft(nn.Linear(6, 4), rank_pattern={"0": 3}, alpha_pattern={"0": 5}, **ZERO),
    "square": lambda: _peft(nn.Linear(2, 2), **ZERO),
    "embedding": lambda: _peft(nn.Embedding(5, 4), **ZERO),
    "convolution": lambda: _peft(nn.Conv2d(3, 4, 3), **ZERO),
    "experts": lambda: _peft(Experts(False), target_parameters=["0.weight"]),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_declared_products_are_those_of_peft(kind: str) -> None:
    """Scale times B A is what peft adds to the weight of a layer."""
    torch.manual_seed(0)
    model = LAYERS[kind]()
    layer = model.get_submodule("base_model.model.0")
    (pair,) = layout_of(model).pairs
    tensors = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    b, a = PairTensors(**vars(pair), a_shape=tensors[pair.a].shape, b_shape=tensors[pair.b].shape).factors(tensors)
    change = pair.scale * (b @ a)
    wanted = layer.get_delta_weight("default").detach().numpy()
    wanted = wanted.T if kind == "embedding" else wanted
    assert np.allclose(change.reshape(wanted.shape), wanted, atol=1e-5)
    assert pair.layer == "base_model.model.0"


def test_own_layers_declare_their_groups_and_matrices() -> None:
    """A grouped convolution is one pair in groups, a recurrent layer one for each matrix."""
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.LSTM(5, 3))
    pairs = layout_of(attach(Lora(rank=2, alpha=3), model)).pairs
    assert {(pair.layer, pair.groups, pair.rank, pair.scale) for pair in pairs} == {
        ("0", 2, 2, 1.5),
        ("1.weight_ih_l0", 1, 2, 1.5),
        ("1.weight_hh_l0", 1, 2, 1.5),
    }


@pytest.mark.parametrize(("method", "scale"), [(Lora(rank=4), 2.0), (RsLora(rank=4), 4.0), (Dora(rank=4), 2.0)])
def test_the_scale_is_that_of_the_method(method: Lora, scale: float) -> None:
    """``alpha / rank``, and with rslora ``alpha / sqrt(rank)``."""
    pairs = layout_of(attach(method, NETWORKS["bert"].model())).pairs
    assert pairs and {pair.scale for pair in pairs} == {scale}


def test_a_shared_pair_is_declared_once() -> None:
    """Under the first of its layers."""
    model = attach(Shared(rank=2), NETWORKS["bert"].model())
    pairs = layout_of(model).pairs
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" in name}
    assert {name for pair in pairs for name in (pair.a, pair.b)} == trained
    assert len(pairs) == len({pair.layer for pair in pairs}) == 2


@pytest.mark.parametrize("method", [Prompt(tokens=5), Prefix(tokens=5)])
def test_prompts_declare_the_positions_that_they_use(method: Prompt | Prefix) -> None:
    """Also where the model brings its prompt."""
    assert layout_of(attach(method, NETWORKS["bert"].model())).prompt_tokens == 5
    assert layout_of(NETWORKS["bert"].model()).prompt_tokens == 0


def test_masks_are_declared_by_the_weights_own_names() -> None:
    """Those that train, and those that were pruned before and do not."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.data[:4] = 0
    assert layout_of(attach(Pruned(), model), ["other.weight"]).masks == ("other.weight", "0.weight")


class Misleading(nn.Module):
    """Names that say something else than the modules are."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizer = nn.Linear(4, 4)
        self.lora_A_head = nn.Linear(4, 4)
        self.ln = nn.LayerNorm(4)
        self.scales = nn.BatchNorm1d(4)
        self.classifier = nn.Linear(4, 2)


def test_roles_are_those_of_modules() -> None:
    """A layer called ``normalizer`` is no norm, and one called ``lora_A_head`` no half of a pair."""
    assert roles_of(Misleading()) == {
        **{f"{name}.weight": "weight" for name in ("normalizer", "lora_A_head")},
        **{f"{name}.bias": "bias" for name in ("normalizer", "lora_A_head")},
        **{f"{name}.{kind}": "norm" for name in ("ln", "scales") for kind in ("weight", "bias")},
        **{f"classifier.{kind}": "head" for kind in ("weight", "bias")},
    }
    roles = roles_of(attach(Lora(rank=2), NETWORKS["bert"].model()))
    halves = {role for name, role in roles.items() if ".lora_" in name}
    assert halves == {"lora_A", "lora_B"}
    assert {role for name, role in roles.items() if "modules_to_save" in name} == {"head"}
