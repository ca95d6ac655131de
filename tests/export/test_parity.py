"""A run on the device has the losses of PyTorch and peft, step by step, at sizes other than those of the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import edgepeft
from edgepeft.methods import Full, Lora, Method, attach
from edgepeft_export.optimizers import SGD, AdamW
from edgepeft_runtime import Trainer
from tests.support.networks import NETWORKS, Network, to_numpy, torch_loss


def _method(network: Network) -> Method:
    return Full() if network.lora is None else Lora(rank=8, alpha=16, target_modules=network.lora)


def _torch_losses(model: nn.Module, network: Network, steps: int, optimizer: torch.optim.Optimizer) -> list[float]:
    model.eval()
    losses = []
    for inputs, labels in network.batches(steps):
        optimizer.zero_grad()
        loss = torch_loss(model, inputs, labels, network.loss)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _device_losses(bundle: Path, network: Network, steps: int) -> list[float]:
    with Trainer.open(bundle) as trainer:
        return [trainer.step(to_numpy(inputs, labels)) for inputs, labels in network.batches(steps)]


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay spares biases and norms."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "minilm" else ()) for n in NETWORKS])
def test_twenty_adamw_steps_equal_torch_and_peft(name: str, tmp_path: Path) -> None:
    """Each of 20 losses is within 1e-5 of PyTorch's."""
    network = NETWORKS[name]
    model = attach(_method(network), network.model())
    edgepeft.prepare(
        model, network.example(), loss=network.loss, optimizer=AdamW(lr=2e-3, weight_decay=0.05), out=tmp_path / "b"
    )
    expected = _torch_losses(model, network, 20, torch.optim.AdamW(_groups(model, 0.05), lr=2e-3))
    assert _device_losses(tmp_path / "b", network, 20) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "minilm"])
def test_full_fine_tuning_crosses_every_operator_of_the_network(name: str, tmp_path: Path) -> None:
    """With every parameter training, embeddings, norms and convolutions included, losses follow PyTorch's."""
    network = NETWORKS[name]
    model = attach(Full(), network.model())
    prepared = edgepeft.prepare(
        model, network.example(), loss=network.loss, optimizer=SGD(lr=0.05, momentum=0.9), out=tmp_path / "b"
    )
    assert not prepared.unreached
    expected = _torch_losses(model, network, 6, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    assert _device_losses(tmp_path / "b", network, 6) == pytest.approx(expected, rel=1e-5)


def test_a_network_of_many_small_tensors_trains(tmp_path: Path) -> None:
    """More tensors than fit a line: 40 layers in two buckets follow PyTorch."""
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(4, 4), nn.Tanh())])
    edgepeft.prepare(model, torch.zeros(2, 4), loss="mse", optimizer=SGD(lr=0.1), out=tmp_path / "b")
    inputs, labels = torch.randn(5, 4), torch.randn(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Trainer.open(tmp_path / "b") as trainer:
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), labels)
            loss.backward()
            optimizer.step()
            step = trainer.step({"input": inputs.numpy(), "labels": labels.numpy()})
            assert step == pytest.approx(loss.item(), rel=1e-4)


OPTIMIZERS = {
    "adamw-clipped": (AdamW(lr=1e-2, max_grad_norm=0.1), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.01)),
    "sgd": (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd-momentum": (SGD(lr=0.1, momentum=0.9, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "sgd-nesterov": (
        SGD(lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
}


def _clip(model: nn.Module, norm: float) -> Callable[..., None]:
    def hook(*_: object) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), norm)

    return hook


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_torch(name: str, tmp_path: Path) -> None:
    """Momentum, Nesterov, weight decay that spares biases, and clipping by global norm follow PyTorch step by step."""
    network = NETWORKS["cnn"]
    ours, theirs = OPTIMIZERS[name]
    model = attach(Full(), network.model())
    edgepeft.prepare(model, network.example(), optimizer=ours, out=tmp_path / "b")
    optimizer = theirs(_groups(model, ours.weight_decay))
    if ours.max_grad_norm is not None:
        optimizer.register_step_pre_hook(_clip(model, ours.max_grad_norm))
    expected = _torch_losses(model, network, 12, optimizer)
    assert _device_losses(tmp_path / "b", network, 12) == pytest.approx(expected, rel=1e-5)
