"""Exports that tests share: another weight, setting or line of code is another export, and copies are independent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgepeft_export.forward import Forward, from_torch
from tests.support.digest import Undigested, digest
from tests.support.exports import SharedExports, shared
from tests.support.store import Store

pytestmark = pytest.mark.own_exports


class Scaled(nn.Module):
    """A linear layer and a setting that is no tensor."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.factor = factor
        self.config = SimpleNamespace(names={"b", "a", "c"}, dropout=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.factor


def with_weight() -> nn.Module:
    model = Scaled()
    with torch.no_grad():
        model.linear.weight[1, 2] += 1e-6
    return model


def with_setting() -> nn.Module:
    model = Scaled()
    model.config.dropout = 0.2
    return model


def with_frozen() -> nn.Module:
    model = Scaled()
    model.linear.weight.requires_grad_(False)
    return model


def with_mask(zeros: int = 1) -> nn.Module:
    """A parametrized layer: torch makes a class for it, and refuses to pickle it."""

    class Masked(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * (torch.arange(3) >= zeros)

    model = Scaled()
    nn.utils.parametrize.register_parametrization(model.linear, "weight", Masked())
    return model


def with_hook() -> nn.Module:
    model = Scaled()
    model.linear.register_forward_hook(lambda _module, _inputs, output: output + 1)
    return model


@pytest.mark.parametrize("change", [with_weight, with_setting, with_frozen, with_mask, with_hook, lambda: Scaled(3.0)])
def test_whatever_differs_has_another_digest(change: Callable[[], nn.Module]) -> None:
    """One element of a weight, a flag, a setting, a hook."""
    assert digest(Scaled()) == digest(Scaled())
    assert digest(change()) != digest(Scaled())


def test_what_a_layer_computes_its_weight_by_counts() -> None:
    """Two masks of other zeros are two models."""
    assert digest(with_mask(1)) == digest(with_mask(1)) != digest(with_mask(2))


def test_recurrent_layers_have_a_digest() -> None:
    """They have weak references to their weights."""
    first, second = nn.GRU(2, 3), nn.GRU(2, 3)
    assert digest(first) != digest(second)
    second.load_state_dict(first.state_dict())
    assert digest(first) == digest(second)


def test_equal_tensors_and_one_tensor_differ() -> None:
    """Tied weights are not two that happen to be equal."""
    tied, equal = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    equal.load_state_dict({**tied.state_dict(), "1.weight": tied[0].weight, "1.bias": tied[0].bias})
    tied.load_state_dict(equal.state_dict())
    assert digest(tied) == digest(equal)
    tied[1].weight = tied[0].weight
    assert digest(tied) != digest(equal)


def _local(power: int, *, add: bool = False) -> type[nn.Module]:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**power

    class Added(Local):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    return Added if add else Local


def test_code_of_local_classes_counts() -> None:
    """Classes inside functions are identified by their code, bases and closures, not by their names."""
    assert digest(_local(2)()) == digest(_local(2)())
    assert len({digest(kind()) for kind in (_local(2), _local(3), _local(2, add=True), _local(3, add=True))}) == 4


def test_what_has_no_content_has_no_digest() -> None:
    """A lock cannot be written down: such a module is exported each time."""
    model = Scaled()
    model.lock = threading.Lock()
    with pytest.raises(Undigested):
        digest(model)


def of_several() -> str:
    """A module with a set among its settings, an example, a local class."""
    return digest(Scaled(), {"x": torch.zeros(2, 3)}, _local(2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_other_processes_find_the_same_digest(seed: str) -> None:
    """Whatever order sets have there."""
    code = "from tests import test_exports; print(test_exports.of_several())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == of_several()


# The store


def test_a_file_is_made_once(tmp_path: Path) -> None:
    """Whoever asks for it meanwhile waits for it; it cannot be written to."""
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("here")

    threads = [threading.Thread(target=Store(tmp_path).get, args=("key", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = Store(tmp_path).get("key", make)
    assert len(made) == 1 and path.read_text() == "here"
    assert path.stat().st_mode & 0o222 == 0


def test_nothing_is_kept_of_a_failure(tmp_path: Path) -> None:
    """The next one tries again."""

    def fail(path: Path) -> None:
        path.write_text("half")
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        Store(tmp_path).get("key", fail)
    assert Store(tmp_path).get("key", lambda path: path.touch()).read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir()} <= {"key", "key.lock"}


# Exports


@pytest.fixture
def exports(tmp_path: Path) -> SharedExports:
    """A store of this test's own."""
    with shared(tmp_path) as found:
        yield found


def _export(model: nn.Module, rows: int = 2) -> Forward:
    return from_torch(model, {"x": torch.zeros(rows, 3)})


def _bytes(forward: Forward) -> bytes:
    return ir.to_proto(forward.model).SerializeToString(deterministic=True)


def _run(forward: Forward) -> np.ndarray:
    session = onnxruntime.InferenceSession(_bytes(forward))
    return session.run(None, {"x": np.ones((4, 3), np.float32), **forward.parameters})[0]


def test_an_export_is_made_once_and_is_the_same(exports: SharedExports) -> None:
    """The second one has the same graph, byte for byte, and the same results."""
    first, second = _export(with_frozen()), _export(with_frozen())
    assert exports.made == 1
    assert _bytes(first) == _bytes(second)
    np.testing.assert_array_equal(_run(first), _run(second))


@pytest.mark.parametrize("change", [with_weight, with_frozen, lambda: Scaled(3.0)])
def test_another_model_is_another_export(change: Callable[[], nn.Module], exports: SharedExports) -> None:
    """What an earlier test has exported is not taken for it."""
    _export(Scaled())
    _export(change())
    assert exports.made == 2


def test_copies_are_independent(exports: SharedExports) -> None:
    """A test that changes its graph and its values changes no other test's."""
    _export(with_frozen())
    mine = _export(with_frozen())
    expected = _run(mine)
    mine.parameters["linear.bias"][:] = 7
    for value in list(mine.model.graph.initializers.values()):
        value.const_value = ir.tensor(np.zeros_like(value.const_value.numpy()))
    np.testing.assert_array_equal(_run(_export(with_frozen())), expected)
    assert exports.made == 1


def test_a_file_of_its_own_is_torch_s(exports: SharedExports, tmp_path: Path) -> None:
    """Arguments by position go to torch as they are, and nothing is kept."""
    path = tmp_path / "m.onnx"
    exports(nn.Linear(3, 2).eval(), (torch.zeros(1, 3),), path, dynamo=True, verbose=False)
    assert path.is_file() and exports.made == 0


def test_exports_can_be_ones_own(exports: SharedExports) -> None:
    """Tests of the export itself use no shared one, and leave none."""
    exports.on = False
    _export(Scaled())
    _export(Scaled())
    assert exports.made == 0
