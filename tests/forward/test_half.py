"""Large matrices in half precision stay so in memory; graph, identity and parameters are those of a float32 module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgepeft.sources.precision import in_single_precision
from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.forward.torch_source import half, lifted
from edgepeft_export.graph.constants import Widened
from edgepeft_export.verification.graph import GraphRun


class Tied(nn.Module):
    """An embedding that is the head too, and a layer whose bias trains."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 64)
        self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)
        self.requires_grad_(False)
        self.linear.bias.requires_grad_(True)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.linear(self.embedding(ids))))
        return (hidden.to(self.linear.weight.dtype) * torch.tensor(0.3)) @ self.embedding.weight.T


IDS = {"ids": torch.arange(14).reshape(2, 7)}


def _export(dtype: torch.dtype, *, whole: bool) -> tuple[nn.Module, Forward]:
    torch.manual_seed(0)
    module, inputs = in_single_precision(Tied().to(dtype), IDS, whole=whole)
    return module, from_torch(module, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_in_memory(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph reads the module's own bytes, and equals that of the module in float32."""
    for place in (half, lifted):
        monkeypatch.setattr(place, "LARGE", 1000)
    module, ours = _export(dtype, whole=False)
    _, reference = _export(dtype, whole=True)
    assert module.embedding.weight.dtype == module.linear.weight.dtype == dtype
    assert module.norm.weight.dtype == module.linear.bias.dtype == torch.float32
    stored = ours.model.graph.initializers["embedding.weight"].const_value
    assert isinstance(stored, Widened)
    assert np.shares_memory(stored.narrow.numpy().view(np.int16), module.embedding.weight.view(torch.int16).numpy())
    assert ours.source == reference.source
    assert ours.model.graph.initializers.keys() >= {"embedding.weight", "linear.weight.T"}
    for name, array in reference.parameters.items():
        np.testing.assert_array_equal(ours.parameters[name], array)
    feeds = {**IDS, **{name: torch.from_numpy(array + 0.5) for name, array in ours.parameters.items()}}
    fed = {name: tensor.numpy() for name, tensor in feeds.items()}
    ours_run, reference_run = GraphRun(ours.model)(fed), GraphRun(reference.model)(fed)
    np.testing.assert_allclose(ours_run["output"], reference_run["output"], rtol=1e-5, atol=1e-6)
    assert ours.verified.tolerance == reference.verified.tolerance  # that of float32


def test_a_module_in_half_precision_computes_in_float32() -> None:
    """Operators convert what they read; changes in place, and views, are of the tensor itself."""
    weight = torch.randn(8, 8).bfloat16()
    x = torch.randn(3, 8)
    with half.ComputesInFloat32():
        product = x @ weight.T
        weight.mul_(2)
        cast = x.to(torch.bfloat16)
    assert product.dtype == cast.dtype == torch.float32 and weight.dtype == torch.bfloat16
    torch.testing.assert_close(product * 2, x @ weight.float().T)
    assert torch.equal(cast, x)
