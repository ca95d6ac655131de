"""The report of doctor agrees with prepare, source by source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import edgepeft
from edgepeft_runtime.errors import EdgepeftError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Mean(nn.Module):
    """The exporter drops an argument of the function it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        h = self.linear(x)
        return torch.zeros_like(h).scatter_reduce(0, to[:, None].expand(-1, 4), h, "mean", include_self=True)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + torch.rand_like(x))


def _linear() -> Arguments:
    return (nn.Linear(3, 2), torch.zeros(2, 3)), {"method": "full"}


class Volume(nn.Module):
    """A determinant, ONNX's operator Det."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(self.linear(x).reshape(-1, 2, 2))


def _volume() -> Arguments:
    return (Volume(), torch.zeros(2, 3)), {"method": "full", "loss": "mse"}


def _mean() -> Arguments:
    inputs = {"x": torch.randn(5, 3), "to": torch.tensor([0, 0, 1, 1, 1])}
    return (Mean(), inputs), {"method": "full", "interface": edgepeft.Interface({"x": {0: "n"}, "to": {0: "n"}})}


def _noisy() -> Arguments:
    return (Noisy(), torch.ones(2, 3)), {"method": "full"}


def _no_class_axis() -> Arguments:
    return (nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), torch.ones(2, 3)), {"method": "full"}


def _unreached() -> Arguments:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).detach()

    return (Detached(), torch.ones(2, 3)), {"method": "full"}


def _soft_targets() -> Arguments:
    labels = {"labels": torch.full((2, 5), 0.2)}
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return (nn.Linear(8, 5), torch.zeros(2, 8)), {
        "method": "full",
        "loss": lambda output, labels: loss(output, labels),
        "interface": edgepeft.Interface(example_labels=labels),
    }


def _file(folder: Path, last: str, shape: list[object]) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node(last, ["y"], ["out"])]
    w = numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [x], [out], [w])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    return folder / "m.onnx"


SOURCES: dict[str, tuple[Callable[..., Any], bool]] = {
    "linear": (_linear, True),
    "soft-targets": (_soft_targets, True),
    "determinant": (_volume, False),
    "exported-wrong": (_mean, False),
    "random": (_noisy, False),
    "no-class-axis": (_no_class_axis, False),
    "unreached": (_unreached, False),
}

FILES = {"Softmax": True, "Relu": True, "Squeeze": True, "Hardmax": False, "Bernoulli": False}


def _says(run: Callable[[], Any]) -> str:
    """Nothing where it can be prepared, else the error's reference."""
    try:
        found = run()
    except EdgepeftError as error:
        return error.code
    return "no-gradient-rule" if getattr(found, "missing_rules", ()) else ""


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.usefixtures("without_det")
def test_doctor_and_prepare_agree_on_modules(name: str, tmp_path: Path) -> None:
    """Its yes is a yes, and its no has prepare's reason."""
    make, good = SOURCES[name]
    where, how = make()
    said = _says(lambda: edgepeft.doctor(*where, **how))
    assert said == _says(lambda: edgepeft.prepare(*where, **how, out=tmp_path / "b"))
    assert (said == "") is good


@pytest.mark.filterwarnings("ignore::edgepeft_runtime.notices.EdgepeftWarning")
@pytest.mark.parametrize("last", FILES)
def test_doctor_and_prepare_agree_on_files(last: str, tmp_path: Path) -> None:
    """The same of .onnx files."""
    path = _file(tmp_path, last, [-1, 3])
    how = {"trainable": ["w"], "loss": "cross_entropy"}
    said = _says(lambda: edgepeft.doctor(path, **how))
    assert said == _says(lambda: edgepeft.prepare(path, **how, out=tmp_path / "b"))
    assert (said == "") is FILES[last]
