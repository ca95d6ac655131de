"""Tensors that share memory train as one, on the device as in torch, and again in peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft_export.errors import ForwardError
from edgepeft_export.forward.torch_source.shared_storage import views_of
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from tests.support.networks import one_layer_llama


class Tied(nn.Module):
    """A table and a head over it: two parameters, one memory."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Parameter(torch.empty(0))
        weight = self.table.weight.detach()
        if kind == "same":
            self.head = nn.Parameter(weight)
        elif kind == "transposed":
            self.head = nn.Parameter(weight.t())
        elif kind == "slice":
            self.head = nn.Parameter(weight[1:4])
        elif kind == "frozen":
            self.head = nn.Parameter(weight, requires_grad=False)
        else:
            del self.head
            self.register_buffer("head", weight)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.mix(self.table(ids).mean(1)))
        return hidden @ (self.head if self.head.shape[0] == 4 else self.head.t())


IDS = torch.randint(0, 6, (5, 3), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1])


def _losses(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, loss: Any, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(**inputs), labels)
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


@pytest.mark.parametrize("kind", ["same", "transposed", "slice", "frozen", "buffer"])
def test_one_memory_trains_once(kind: str, tmp_path: Path) -> None:
    """Three losses equal torch's. A frozen view changes with its owner and has no gradient."""
    model = Tied(kind)
    (view,) = views_of(model)
    assert view == ("table.weight" if kind == "same" else "head")
    bundle = edgepeft.prepare(model, {"ids": IDS}, optimizer=SGD(lr=0.1, momentum=0.9), out=tmp_path / "b").bundle
    with Trainer.open(bundle) as trainer:
        assert len(trainer.parameters()) == 3 and view not in trainer.parameters()
        losses = [trainer.step({"ids": IDS.numpy(), "labels": LABELS.numpy()}) for _ in range(3)]
    assert losses == pytest.approx(_losses(model, {"ids": IDS}, LABELS, nn.functional.cross_entropy), rel=1e-5)


def test_neighbours_in_one_memory_are_apart() -> None:
    """Adjacent parameters of a flat tensor share no memory."""
    flat = torch.randn(12)
    model = nn.ParameterList([nn.Parameter(flat[:6].view(2, 3)), nn.Parameter(flat[6:])])
    assert views_of(model) == {}


def test_other_overlaps_are_refused() -> None:
    """Every second element of another parameter is neither a transposition nor a slice."""
    flat = torch.randn(12)
    model = nn.ParameterList([nn.Parameter(flat), nn.Parameter(flat[::2])])
    with pytest.raises(ForwardError, match="share memory") as caught:
        views_of(model)
    assert caught.value.code == "shared-storage" and caught.value.hint


def _causal(out: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


TIED: dict[str, dict[str, Any]] = {
    "pairs": {"target_modules": ["embed_tokens", "lm_head"]},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("kind", TIED)
def test_weights_that_peft_ties_come_back(kind: str, tmp_path: Path) -> None:
    """``ensure_weight_tying``: torch's losses, and an adapter that gives peft the device's logits."""
    from peft import LoraConfig, PeftModel, get_peft_model

    lora = LoraConfig(r=2, task_type="CAUSAL_LM", ensure_weight_tying=True, **TIED[kind])
    model = get_peft_model(one_layer_llama(tie_word_embeddings=True), lora).eval()
    ids = torch.randint(0, 10, (2, 6), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    fed = {name: tensor.numpy() for name, tensor in inputs.items()}
    settings = {"loss": "causal_lm", "optimizer": SGD(lr=0.1, momentum=0.9)}
    bundle = edgepeft.prepare(model, inputs, out=tmp_path / "b", **settings).bundle
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step({**fed, "labels": ids.numpy()}) for _ in range(3)]
        logits = trainer.predict(fed)["logits"]
        update = trainer.save_update(tmp_path / "u.safetensors")
    expected = _losses(
        model,
        inputs,
        ids,
        lambda out, y: nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten()),
    )
    assert losses == pytest.approx(expected, rel=1e-5)
    adapter = edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(one_layer_llama(tie_word_embeddings=True), adapter).eval()
    np.testing.assert_allclose(loaded(**inputs).logits.detach().numpy(), logits, atol=1e-5)
