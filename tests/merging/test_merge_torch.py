"""Merged state dicts load by the code of merge's message. Updates without training are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft.methods import attach
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.notices import EdgepeftWarning


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.norm(self.inner(x))))


ROWS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
BATCH = {"x": ROWS.numpy(), "labels": np.array([0, 1, 2, 0, 1])}


def _trained(bundle: Path, update: Path, lr: float = 0.1) -> np.ndarray:
    with Trainer.open(bundle) as trainer:
        trainer.step(BATCH, lr=lr)
        trainer.save_update(update)
        return trainer.predict({"x": ROWS.numpy()})["output"]


def _peft_model() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(Rows(), LoraConfig(r=2, target_modules=["inner"]))


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (Rows, "lora"),
        (Rows, edgepeft.Lora(rank=2, target_modules=("inner",), modules_to_save=("classifier",))),
        (Rows, "dora"),
        (Rows, "ffa"),
        (Rows, "norm"),
        (Rows, "adapter"),
        (Rows, edgepeft.Freeze(train=("inner",))),
        (Rows, edgepeft.Sift(mask="random", rate=0.2)),
        (_peft_model, None),
    ],
    ids=["lora", "settings", "dora", "ffa", "norm", "adapter", "freeze", "sift", "flags"],
)
def test_a_state_dict_is_loaded_as_the_message_says(make: Any, method: Any, tmp_path: Path) -> None:
    """The code of the message, run on the model that was prepared, gives the device's outputs."""
    torch.manual_seed(1)
    model = make()
    bundle = edgepeft.prepare(model, {"x": ROWS}, method=method, optimizer=SGD(), out=tmp_path / "b").bundle
    expected = _trained(bundle, tmp_path / "u.safetensors")
    said: list[str] = []
    out = tmp_path / ("s.pt" if method == "lora" else "s.safetensors")
    edgepeft.merge(bundle, tmp_path / "u.safetensors", to="torch", out=out, on_progress=said.append)
    if method == "ffa":  # its A do not train, and are drawn when it is attached
        torch.manual_seed(1)
    scope: dict[str, Any] = {"model": model}
    exec("\n".join(said[0].splitlines()[1:]), scope)
    found = scope["model"].eval()(ROWS).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_names_of_a_file_are_no_module_s(tmp_path: Path) -> None:
    """An .onnx source has initializers, and the message says so instead of advising a useless load."""
    path = tmp_path / "m.onnx"
    program = torch.onnx.export(Rows().eval(), kwargs={"x": ROWS}, dynamo=True, verbose=False)
    program.save(path)
    bundle = edgepeft.prepare(path, method="lora", out=tmp_path / "b").bundle
    with Trainer.open(bundle) as trainer:
        trainer.step({"x": ROWS.numpy(), "labels": BATCH["labels"]}, lr=0.1)
        trainer.save_update(tmp_path / "u.safetensors")
    said: list[str] = []
    edgepeft.merge(bundle, tmp_path / "u.safetensors", to="torch", out=tmp_path / "s.pt", on_progress=said.append)
    assert ".onnx file" in said[0] and "load_state_dict" not in said[0]


def test_an_update_that_learned_nothing_is_named(tmp_path: Path) -> None:
    """By merge, pull and aggregate, in one line each; one that learned something is not."""
    model = attach(edgepeft.Lora(rank=1), Rows())
    bundle = edgepeft.prepare(model, {"x": ROWS}, optimizer=SGD(), out=tmp_path / "b").bundle
    (folder := tmp_path / "updates").mkdir()
    idle, busy = folder / "idle.safetensors", folder / "busy.safetensors"
    _trained(bundle, idle, lr=0.0)
    _trained(bundle, busy)
    with pytest.warns(EdgepeftWarning, match="idle.safetensors changed nothing"):
        edgepeft.merge(bundle, idle, to="torch", out=tmp_path / "a.pt")
    with pytest.warns(EdgepeftWarning, match="changed nothing") as pulled:
        edgepeft.pull([folder], tmp_path / "into", bundle)
    with pytest.warns(EdgepeftWarning, match="idle.safetensors changed nothing") as aggregated:
        edgepeft.aggregate(bundle, [idle, busy])
    for said in (pulled, aggregated):
        assert all("busy" not in str(one.message) for one in said if issubclass(one.category, EdgepeftWarning))
