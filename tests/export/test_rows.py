"""Blocks that run for a few rows at a time compute the step of all rows, and their wide tensors never exist whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgepeft.methods import Lora, attach
from edgepeft_export import losses
from edgepeft_export.bundle import write_bundle
from edgepeft_export.chunks import CHUNKS, NORMAL
from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import from_torch
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer

WIDTH, INNER, ROWS = 8, 24, 6


class Gated(nn.Module):
    """A gated feed-forward part whose first matrix is split, as in Phi-3."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(WIDTH, 2 * INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * up)


class Plain(nn.Module):
    """A feed-forward part of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Blocks(nn.Module):
    """Blocks that mix positions, then treat rows alike; with the norm after the sum where ``last``."""

    def __init__(self, kind: type[nn.Module], last: bool) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.parts = nn.ModuleList(kind() for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for mixer, part, norm in zip(self.mixers, self.parts, self.norms, strict=True):
            x = x + torch.softmax(x @ x.transpose(1, 2), -1) @ mixer(x)
            x = norm(x + part(x)) if self.last else x + part(norm(x))
        return x


def _made(kind: type[nn.Module], last: bool, trains: str) -> tuple[nn.Module, Compiled]:
    torch.manual_seed(0)
    model: nn.Module = Blocks(kind, last).eval()
    if trains == "lora":
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        model = attach(Lora(rank=2, target_modules=names), model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains in name)
    forward = from_torch(model, {"x": torch.zeros(2, 4, WIDTH)}, dynamic_axes={"x": {0: "batch", 1: "length"}})
    return model, compile_step(forward, losses.by_name("mse"), SGD(lr=0.1), "input")


def _maps(step: Compiled) -> int:
    return sum(node.op_type == "Scan" for name in step.graphs for node in step.graphs[name].graph)


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize(
    ("kind", "last", "trains"),
    [(Gated, False, "lora"), (Plain, True, "lora"), (Gated, True, "bias"), (Plain, False, "norm")],
)
def test_a_step_is_that_of_torch(
    kind: type[nn.Module], last: bool, trains: str, length: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For fewer rows than a chunk, and for several, of which the last is smaller; gradients of parameters add up."""
    monkeypatch.setitem(CHUNKS, "normal", replace(NORMAL, rows=ROWS))
    model, step = _made(kind, last, trains)
    assert _maps(step) >= 2
    bundle = write_bundle(step, losses.by_name("mse"), SGD(lr=0.1), tmp_path / "b")
    draw = torch.Generator().manual_seed(length)
    x, y = (torch.randn((2, length, WIDTH), generator=draw) for _ in range(2))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = nn.functional.mse_loss(model(x), y)
    gradients = torch.autograd.grad(loss, list(trained.values()))
    with Trainer.open(bundle, threads=1) as trainer:
        before = trainer.parameters()
        assert trainer.step({"x": x.numpy(), "labels": y.numpy()}) == pytest.approx(loss.item(), rel=1e-5)
        after = trainer.parameters()
    assert before.keys() == trained.keys()
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        np.testing.assert_allclose(before[name], parameter.detach().numpy())
        np.testing.assert_allclose(
            (before[name] - after[name]) / 0.1, gradient.numpy(), rtol=1e-3, atol=2e-5, err_msg=name
        )


def test_wide_tensors_exist_for_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of the loops of a train step no tensor is wider than a row; matrices that train keep their part whole."""
    monkeypatch.setitem(CHUNKS, "normal", replace(NORMAL, rows=ROWS))
    graphs = {trains: _made(Gated, False, trains)[1] for trains in ("lora", "weight")}
    assert not any(_wide(model) for name, model in graphs["lora"].graphs.items() if _trains(graphs["lora"], name))
    assert any(_wide(model) for model in graphs["weight"].graphs.values())


def _trains(step: Compiled, name: str) -> bool:
    return any(call.graph == f"{name}.onnx" for call in step.programs["train"])


def _wide(model: ir.Model) -> list[ir.Value]:
    """Activations of more than a row's width, and of free length."""
    values = [value for node in model.graph for value in node.outputs if value.shape is not None and len(value.shape)]
    return [
        value
        for value in values
        if isinstance(value.shape[-1], int) and value.shape[-1] >= INNER and not isinstance(value.shape[0], int)
    ]


def test_a_resumed_run_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four steps in chunks of rows, at once and with an end in the middle."""
    monkeypatch.setitem(CHUNKS, "normal", replace(NORMAL, rows=ROWS))
    _, step = _made(Gated, False, "bias")
    bundle = write_bundle(step, losses.by_name("mse"), SGD(lr=0.1), tmp_path / "b")
    draw = np.random.default_rng(0)
    batches = [{key: draw.normal(size=(2, 7, WIDTH)).astype(np.float32) for key in ("x", "labels")} for _ in range(4)]
    found = []
    for name, parts in (("whole", (batches,)), ("parts", (batches[:2], batches[2:]))):
        for part in parts:
            with Trainer.open(bundle, state=tmp_path / name, threads=2) as trainer:
                for batch in part:
                    trainer.step(batch, lr=1e-3)
                trainer.save()
                parameters = trainer.parameters()
        found.append(parameters)
    for name, array in found[0].items():
        assert array.tobytes() == found[1][name].tobytes(), name
