"""Every kind of adapter that peft has: its losses on the device are torch's, or it is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft.methods.errors import MethodError
from edgepeft.methods.support.peft.rotations import orthonormal, rotations
from edgepeft.methods.support.peft.types import REFUSED, TRAINED
from edgepeft.preparation.attachment import Attachment, attach_to_copy
from edgepeft.sources.source import Source
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from tests.support.networks import NETWORKS


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 8)
        self.inner = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.outer = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.outer(torch.relu(self.norm(self.inner(self.table(ids).mean(1)))))


IDS = torch.randint(0, 9, (4, 3), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0])
INNER: dict[str, Any] = {"target_modules": ["inner"]}
PROMPT: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
PROMPTS = {
    "PROMPT_TUNING": PROMPT,
    "P_TUNING": {**PROMPT, "encoder_hidden_size": 8},
    "PREFIX_TUNING": PROMPT,
    "ADAPTION_PROMPT": {"task_type": "CAUSAL_LM", "adapter_len": 3, "adapter_layers": 1},
}
LAYERS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 2},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["norm"]},
    "VERA": {"r": 2},
    "LOHA": {"r": 2},
    "LOKR": {"r": 2},
    "OFT": {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False},
    "BOFT": {"boft_block_size": 4},
    "VBLORA": {"r": 2, "num_vectors": 4, "vector_length": 4, "topk": 2},
    "RANDLORA": {"r": 2},
    "MISS": {"r": 2},
    "ROAD": {"group_size": 4},
    "TRAINABLE_TOKENS": {"target_modules": ["table"], "token_indices": [1, 2, 3]},
    "WAVEFT": {"n_frequency": 4},
    "DELORA": {"r": 2},
    "GRALORA": {"r": 2, "gralora_k": 2},
    "ADAMSS": {"r": 2},
    "BEFT": {},
    "LILY": {"r": 2},
    "PVERA": {"r": 2},
    "GLORA": {},
    "UNILORA": {},
    "HIRA": {},
    "TINYLORA": {"r": 2},
    "PEANUT": {},
    "SUPERTUNING": {"sparsity": 0.8},
    "DEFT": {},
    "FOURIERFT": {"n_frequency": 4},
    "C3A": {"block_size": 4},
    "SHIRA": {"r": 1},
    "HRA": {"r": 2},
    "PSOFT": {"r": 2},
}


def test_every_kind_is_trained_or_refused() -> None:
    """peft's own list is the measure, and every kind that trains has its case below."""
    from peft import PeftType

    assert {kind.value for kind in PeftType} <= TRAINED | REFUSED.keys()
    assert not TRAINED & REFUSED.keys()
    assert LAYERS.keys() | PROMPTS.keys() == TRAINED


def _adapted(kind: str, settings: dict[str, Any]) -> nn.Module:
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    torch.manual_seed(0)
    return get_peft_model(Rows(), PEFT_TYPE_TO_CONFIG_MAPPING[kind](**{**INNER, **settings})).eval()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in LAYERS])
def test_the_losses_of_a_kind_are_torch_s(kind: str, tmp_path: Path) -> None:
    """Three steps of the adapter as peft makes it."""
    model = _adapted(kind, LAYERS[kind])
    bundle = edgepeft.prepare(model, {"ids": IDS}, optimizer=SGD(lr=0.1), out=tmp_path / "b").bundle
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step({"ids": IDS.numpy(), "labels": LABELS.numpy()}) for _ in range(3)]
    expected = _losses(model, IDS, 0.1)
    assert expected[2] < expected[0]
    assert losses == pytest.approx(expected, rel=1e-5)


def _losses(model: nn.Module, x: Tensor, lr: float) -> list[float]:
    """Three losses of torch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "kind",
    [
        "PROMPT_TUNING",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in PROMPTS if kind != "PROMPT_TUNING"),
    ],
)
def test_a_causal_model_s_loss_with_a_prompt_is_peft_s(kind: str, tmp_path: Path) -> None:
    """The first token is scored if embeddings precede it. Ignored labels may be anywhere."""
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    model = get_peft_model(NETWORKS["llama"].model(), PEFT_TYPE_TO_CONFIG_MAPPING[kind](**PROMPTS[kind])).eval()
    ids = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 0], labels[1, 5:] = -100, -100
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    bundle = edgepeft.prepare(model, inputs, loss="causal_lm", optimizer=SGD(lr=0.1), out=tmp_path / "b").bundle
    fed = {name: tensor.numpy() for name, tensor in inputs.items()}
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step({**fed, "labels": labels.numpy()}) for _ in range(3)]
        assert trainer.predict(fed)["logits"].shape == (3, 7, 101)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    expected = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-5)


def _refused(model: nn.Module) -> MethodError:
    with pytest.raises(MethodError) as caught:
        attach_to_copy(Source(model, {"ids": IDS}), model, Attachment())
    assert caught.value.code == "peft-type" and caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_would_train_otherwise_is_refused(kind: str) -> None:
    """By its name and the reason; the model that carries it is peft's own wherever the kind takes any model."""
    model = _adapted("LORA", {"r": 2})
    model.peft_config["default"].peft_type = kind
    assert kind in _refused(model).message and REFUSED[kind] in _refused(model).message


def test_adalora_is_refused_as_peft_makes_it() -> None:
    """Its orthogonality term would be dropped."""
    assert "orthogonality" in _refused(_adapted("ADALORA", {"init_r": 2, "target_r": 1, "total_step": 10})).message


def test_a_kind_that_is_not_known_is_refused() -> None:
    """A kind of a later version of peft."""
    model = _adapted("LORA", {"r": 2})
    model.peft_config["default"].peft_type = "NEXT_YEARS"
    assert "NEXT_YEARS" in _refused(model).message


@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (5, 1), (2, 4)])
def test_orthonormal_columns_are_those_of_lapack(shape: tuple[int, int]) -> None:
    """With their signs, and with the gradient where torch has one."""
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    weights = torch.randn(shape[0], min(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    expected, found = torch.linalg.qr(matrix).Q, orthonormal(matrix)
    assert torch.allclose(found, expected, atol=1e-12)
    if shape[0] >= shape[1]:
        gradients = [torch.autograd.grad((q * weights).sum(), matrix)[0] for q in (found, expected)]
        assert torch.allclose(*gradients, atol=1e-10)


class Attention(nn.Module):
    """Attention in which torch has one weight for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn, self.outer = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.attn(x, x, x, need_weights=False)[0].mean(1))


def test_lora_of_multihead_attention_trains_as_in_peft(tmp_path: Path) -> None:
    """peft writes into the weights during the forward; the losses and the merged model are the same."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(Attention(), LoraConfig(target_modules=["attn"], r=2, lora_alpha=5)).eval()
    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))
    bundle = edgepeft.prepare(model, {"x": x}, optimizer=SGD(lr=0.5), out=tmp_path / "b").bundle
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step({"x": x.numpy(), "labels": LABELS.numpy()}) for _ in range(3)]
        update, made = trainer.save_update(tmp_path / "u.safetensors"), trainer.predict({"x": x.numpy()})["output"]
    assert losses == pytest.approx(_losses(model, x, 0.5), rel=1e-5)
    adapter = edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")
    from peft import PeftModel

    with torch.no_grad():
        again = PeftModel.from_pretrained(Attention(), adapter).eval()(x)
    assert np.allclose(again, made, atol=1e-5)


@pytest.mark.parametrize(("size", "norm"), [(2, 0.1), (8, 1.0), (16, 20.0)])
def test_a_rotation_and_its_gradient_are_a_solution_s(size: int, norm: float) -> None:
    """Of small and large skew-symmetric matrices."""
    draw = torch.randn(3, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    skew = draw - draw.transpose(1, 2)
    skew = (norm * skew / skew.square().sum((1, 2), keepdim=True).sqrt()).requires_grad_(True)
    one, weight = torch.eye(size, dtype=torch.float64), torch.randn(3, size, size, dtype=torch.float64)
    expected = torch.linalg.solve(one + skew, one - skew, left=False)
    found = rotations(skew)
    assert torch.allclose(found, expected, atol=1e-10)
    wanted, got = (torch.autograd.grad((y * weight).sum(), skew)[0] for y in (expected, found))
    assert torch.allclose(got, wanted, atol=1e-9)
