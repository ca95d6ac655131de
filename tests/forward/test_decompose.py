"""Programs are decomposed only where an operator needs it, and the graphs are those of decomposed programs."""

from __future__ import annotations

import contextlib
from collections import Counter

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.forward.torch_source import export
from tests.support.networks import NETWORKS

pytestmark = pytest.mark.own_exports


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """The programs that are decomposed."""
    programs: list[ExportedProgram] = []
    whole = ExportedProgram.run_decompositions

    def spied(program: ExportedProgram, *table: object) -> ExportedProgram:
        programs.append(program)
        return whole(program, *table)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", spied)
    return programs


def _exported(model: nn.Module, example: dict[str, Tensor]) -> Forward:
    model.requires_grad_(False)
    list(model.parameters())[-1].requires_grad_(True)
    return from_torch(model, example)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_graph_is_that_of_a_decomposed_program(
    name: str, decomposed: list[ExportedProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversions of dtypes and a second name of an operator are no reason for a second trace."""
    network = NETWORKS[name]
    direct = _exported(network.model(), network.example())
    assert not decomposed
    monkeypatch.setattr(export, "decomposing_where_needed", contextlib.nullcontext)
    other = _exported(network.model(), network.example())
    assert decomposed
    assert _operators(direct) == _operators(other)
    assert [str(value) for value in direct.model.graph.inputs] == [str(value) for value in other.model.graph.inputs]


def _operators(forward: Forward) -> Counter[tuple[str, str]]:
    return Counter((node.op_type, str(node.outputs[0].shape)) for node in forward.model.graph)


class Mixed(nn.Module):
    """Operators that read tensors and numbers of different dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        y = self.linear(x) * 2 + n.sum(1, keepdim=True)
        return (
            torch.where(n > 1, y**2 / 3, n.float().mean() * n) + n.double().mean(1, keepdim=True).float() + n.sum() / 2
        )


def test_shortcuts_do_not_change_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promotions of dtypes are the same where only changed nodes run again, and each rule is used as often."""
    example = {"x": torch.ones(3, 4), "n": torch.arange(12).reshape(3, 4)}
    axes = {name: {0: "batch"} for name in example}
    torch.manual_seed(0)
    model = Mixed()
    short = from_torch(model, example, dynamic_axes=axes)
    monkeypatch.setattr(export, "shortcuts", contextlib.nullcontext)
    whole = from_torch(model, example, dynamic_axes=axes)
    protos = [ir.to_proto(forward.model).SerializeToString(deterministic=True) for forward in (short, whole)]
    assert protos[0] == protos[1]
    assert "Pow" in {node.op_type for node in short.model.graph}


class Layer(nn.Module):
    """``entr`` is not translated, and ``mul_`` writes into its argument."""

    def __init__(self, changes: bool) -> None:
        super().__init__()
        self.linear, self.changes = nn.Linear(4, 4), changes

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.changes:
            return y.mul_(y).mul(x)
        return torch.special.entr(torch.sigmoid(y))


@pytest.mark.parametrize("changes", [False, True])
def test_other_operators_are_decomposed(changes: bool, decomposed: list[ExportedProgram]) -> None:
    """These need the second trace."""
    _exported(Layer(changes), {"x": torch.rand(3, 4)})
    assert decomposed
