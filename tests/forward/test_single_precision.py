"""Half precision on its way in: brought to float32, with torch's losses, and never left without a kernel."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from torch import Tensor, nn

import edgepeft
from edgepeft_export.optimizers import SGD
from edgepeft_runtime import Trainer
from edgepeft_runtime.notices import EdgepeftWarning

HALVES = [torch.float16, torch.bfloat16]
ROWS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1])


class Mixed(nn.Module):
    """A part in half precision, whose weights and casts are of that type."""

    def __init__(self, dtype: torch.dtype, *, half_output: bool = False, fixed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 8).to(dtype)
        self.outer = nn.Linear(8, 3)
        self.register_buffer("shift", torch.linspace(-1, 1, 8).to(dtype))
        self.half_output, self.dtype = half_output, dtype if fixed else None
        self.inner.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(x.to(self.dtype or self.inner.weight.dtype)) + self.shift)
        z = self.outer(y.float())
        return z.to(y.dtype) if self.half_output else z


class Autocast(nn.Module):
    """A network whose matmuls run in bfloat16 by a wrapper of torch's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 8)
        self.outer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.outer(torch.relu(self.inner(x)))


def _steps(bundle: Path, name: str = "x", rows: np.ndarray | None = None) -> list[float]:
    fed = {name: ROWS.numpy() if rows is None else rows, "labels": LABELS.numpy()}
    with Trainer.open(bundle, threads=1) as trainer:
        return [trainer.step(fed) for _ in range(3)]


def _torch_steps(model: nn.Module, rows: Tensor = ROWS) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(rows).float(), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


MODELS: dict[str, Any] = {
    **{f"weights-{str(dtype)[6:]}": lambda dtype=dtype: Mixed(dtype) for dtype in HALVES},
    **{f"outputs-{str(dtype)[6:]}": lambda dtype=dtype: Mixed(dtype, half_output=True) for dtype in HALVES},
    **{f"casts-{str(dtype)[6:]}": lambda dtype=dtype: Mixed(dtype, fixed=True) for dtype in HALVES},
    "autocast": Autocast,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_module_in_half_precision_trains_in_float32(name: str, tmp_path: Path) -> None:
    """Three losses equal torch's up to rounding. One line reports the change. The module keeps its types."""
    model = MODELS[name]()
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    with pytest.warns(EdgepeftWarning, match="float32"):
        bundle = edgepeft.prepare(model, {"x": ROWS}, optimizer=SGD(lr=0.1), out=tmp_path / "b").bundle
    assert dtypes == {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert _steps(bundle) == pytest.approx(_torch_steps(model), rel=2e-2)
    with Trainer.open(bundle) as trainer:
        assert trainer.predict({"x": ROWS.numpy()})["output"].dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_trains_is_brought_to_float32_too(dtype: torch.dtype, tmp_path: Path) -> None:
    """A whole module in another precision, its inputs as well: float32 torch's losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    with pytest.warns(EdgepeftWarning, match="float32"):
        bundle = edgepeft.prepare(model, {"input": ROWS.to(dtype)}, optimizer=SGD(lr=0.1), out=tmp_path / "b").bundle
    rows = ROWS.to(dtype).float()
    assert _steps(bundle, "input", rows.numpy()) == pytest.approx(_torch_steps(model.float(), rows), rel=1e-5)


def test_float32_is_left_alone(tmp_path: Path) -> None:
    """No line about precision, also with integer tables and masks inside."""

    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(12).reshape(6, 2), requires_grad=False)
            self.outer = nn.Linear(2, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.outer(self.table[ids].float().mean(1))

    with warnings.catch_warnings():
        warnings.simplefilter("error", EdgepeftWarning)
        ids = torch.randint(0, 6, (5, 3), generator=torch.Generator().manual_seed(0))
        bundle = edgepeft.prepare(Tables(), {"ids": ids}, out=tmp_path / "b").bundle
    with Trainer.open(bundle) as trainer:
        assert np.isfinite(trainer.step({"ids": ids.numpy(), "labels": LABELS.numpy()}))


BODIES = {
    "MaxPool": "p = MaxPool <kernel_shape = [2, 2]> (h)",
    "Gather": "p = Gather <axis = 3> (h, i)",
    "GatherElements": "p = GatherElements <axis = 3> (h, e)",
}
CONSTANTS = {
    "i": np.array([0, 0, 1]),
    "e": np.zeros((2, 1, 4, 2), np.int64),
    "axes": np.array([1, 2, 3]),
}


def _file(folder: Path, body: str, kind: int, weight: np.ndarray) -> Path:
    nodes = f"c = Cast <to = {kind}> (x)  h = Mul(c, k)  {body}  q = Cast <to = 1> (p)"
    model = parser.parse_model(f"""<ir_version: 9, opset_import: ["": 20]> g (float[2, 1, 4, 4] x) => (float[n] y) {{
        {nodes}  y = ReduceMean <keepdims = 0> (q, axes) }}""")
    used = {name for node in model.graph.node for name in node.input}
    for name, array in {**CONSTANTS, "k": weight}.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("op", BODIES)
def test_a_file_in_half_precision_trains_in_float32(op: str, tmp_path: Path) -> None:
    """Gradients that are scattered, for which no device has a kernel of float16; the weight itself is in float16."""
    path = _file(tmp_path, BODIES[op], 10, np.ones((1,), np.float16))
    with pytest.warns(EdgepeftWarning, match="float16"):
        bundle = edgepeft.prepare(path, out=tmp_path / "b", trainable=["k"], loss="mse", optimizer=SGD(lr=0.1)).bundle
    x = np.random.default_rng(0).random((2, 1, 4, 4), np.float32)
    other = edgepeft.prepare(
        _file(tmp_path, BODIES[op], 1, np.ones((1,), np.float32)),
        out=tmp_path / "c",
        trainable=["k"],
        loss="mse",
        optimizer=SGD(lr=0.1),
    ).bundle
    losses = []
    for made in (bundle, other):
        with Trainer.open(made, threads=1) as trainer:
            losses.append([trainer.step({"x": x, "labels": np.zeros(2, np.float32)}) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][2] < losses[0][0]
