"""Biases, norms and the head of an .onnx file are found by the operators that read them, and train as in torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft_export import optimizers
from edgepeft_export.errors import UnknownInitializer
from edgepeft_runtime import Trainer

SGD = optimizers.SGD(lr=0.1, momentum=0.0, weight_decay=0.0)

TRAINED: dict[str, Callable[[str], bool]] = {
    "bitfit": lambda name: name.endswith("bias") or name.startswith("4."),
    "norm": lambda name: name.startswith(("1.", "4.")),
    "head": lambda name: name.startswith("4."),
}


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 8, bias=False), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval()


def _file(path: Path, opset: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"input": {0: "n"}}
        torch.onnx.export(
            _network(), (torch.zeros(2, 5),), str(path), opset_version=opset, dynamo=False, input_names=["input"],
            output_names=["scores"], dynamic_axes=axes,
        )  # fmt: skip
    return path


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("opset", [13, 17])
def test_a_kind_of_tensors_trains_as_in_torch(method: str, opset: int, tmp_path: Path) -> None:
    """Operator set 13 has no LayerNormalization: the norm is written out."""
    path = _file(tmp_path / "m.onnx", opset)
    edgepeft.prepare(path, method=method, optimizer=SGD, out=tmp_path / "b")
    network = _network()
    trained = {name: tensor for name, tensor in network.named_parameters() if TRAINED[method](name)}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    with Trainer.open(tmp_path / "b") as trainer:
        sizes = sorted(array.size for array in trainer.parameters().values())
        assert sizes == sorted(tensor.numel() for tensor in trained.values())
        for rows in (4, 3):
            x, labels = _batch(rows)
            loss = nn.functional.cross_entropy(network(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found = trainer.step({"input": x.numpy(), "labels": labels.numpy()})
            assert found == pytest.approx(loss.item(), rel=1e-5)
        x, _ = _batch(5)
        np.testing.assert_allclose(
            trainer.predict({"input": x.numpy()})["scores"], network(x).detach().numpy(), rtol=1e-4, atol=1e-5
        )


def _batch(rows: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 5, generator=draw), torch.randint(0, 3, (rows,), generator=draw)


def test_a_file_without_norms_is_refused(tmp_path: Path) -> None:
    """The error says what is missing, and what else can train."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(nn.Linear(3, 2), (torch.zeros(1, 3),), str(tmp_path / "m.onnx"), dynamo=False)
    with pytest.raises(UnknownInitializer, match="no norm with a scale"):
        edgepeft.prepare(tmp_path / "m.onnx", method="norm", out=tmp_path / "b")
