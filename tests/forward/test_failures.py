"""What torch cannot export is refused in one sentence, with the module or the operator, and a way out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgepeft_export.errors import ExportFailed
from edgepeft_export.forward import from_torch


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class _Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum())):
            x = x + 1
        return x


class _Lacking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linalg.lstsq(x.T @ x + torch.eye(3), x.T).solution.T


class _Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise KeyError("weights")
        return x


class _Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.layer, self.inner = nn.Linear(3, 3), inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x))


@pytest.mark.parametrize("inner", [_Branching(), _Looping(), _Lacking(), _Raising()], ids=repr)
def test_a_refusal_names_the_module_and_a_way_out(inner: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    """None of the exceptions' own texts is shown, which are many lines about the exporter, and nothing is printed."""
    with pytest.raises(ExportFailed) as failure:
        from_torch(_Outer(inner), {"x": torch.randn(2, 3)})
    error = failure.value
    assert error.message.startswith("torch.onnx cannot export module 'inner' of _Outer: ")
    assert "\n" not in error.message and error.hint is not None and "\n" not in error.hint
    assert error.context is None or error.context.startswith("test_failures.py, line ")
    assert error.__cause__ is not None
    assert capfd.readouterr() == ("", "")
