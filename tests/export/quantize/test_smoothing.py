"""Activations whose channels differ in size are divided by factors before their rows are rounded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.graph.linear import LinearSite
from edgepeft_export.graph.rounding import LARGEST_PAIR, pair_sums
from edgepeft_export.graph.smoothing import before_smoothing
from edgepeft_export.quantize import Quantization, QuantizationReport, quantize
from edgepeft_export.verification import GraphRun

SETTINGS = Quantization("int8", smallest=64, rounding="row")
WIDTH = 64


class Outliers(nn.Module):
    """Three matmuls of one activation, four of whose channels are fifty times as large, and one of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, 48, bias=False) for _ in range(3))
        self.out = nn.Linear(48, WIDTH)
        self.gain = nn.Buffer(torch.where(torch.arange(WIDTH) % 16 == 3, 50.0, 1.0))
        with torch.no_grad():
            for layer in (self.q, self.k, self.v):
                layer.weight /= self.gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.gain
        mixed = torch.tanh(self.q(x)) * torch.sigmoid(self.k(x)) + self.v(x)
        out: torch.Tensor = self.out(mixed)
        return out


def _exported() -> Forward:
    model = Outliers().requires_grad_(False)
    model.out.bias.requires_grad_(True)
    return from_torch(model, {"x": _x(0)})


def _x(seed: int) -> torch.Tensor:
    return torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(seed))


def _error(forward: Forward, quantized: Forward) -> float:
    fed = {"x": _x(1).numpy(), **forward.fixed(forward.parameters)}
    runs = (GraphRun(side.model)(fed)[forward.outputs[0]] for side in (forward, quantized))
    exact, rounded = (np.asarray(output, np.float64) for output in runs)
    return float(np.linalg.norm(exact - rounded) / np.linalg.norm(exact))


def _smoothed(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.outputs and before_smoothing(node.outputs[0]) is not None]


def test_large_channels_cost_no_precision() -> None:
    """The error falls below a half of that without factors, on other data than that which chose them."""
    forward = _exported()
    smoothed, report = quantize(forward, SETTINGS)
    plain, _ = quantize(forward, SETTINGS, decided=QuantizationReport(rows=dict.fromkeys(report.rows)))
    assert _error(forward, smoothed) < 0.5 * _error(forward, plain)


def test_matmuls_of_one_activation_share_its_division() -> None:
    """q, k and v read one product; the same decision for another graph makes the same bytes."""
    forward = _exported()
    quantized, report = quantize(forward, SETTINGS)
    assert [len(node.outputs[0].uses()) for node in _smoothed(quantized.model)] == [3, 1]
    again, _ = quantize(forward, SETTINGS, decided=report)
    for name, value in quantized.model.graph.initializers.items():
        assert value.const_value is not None
        other = again.model.graph.initializers[name].const_value
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())


def test_a_layer_behind_a_division_has_the_matrix_of_the_source() -> None:
    """The factors cancel in what the layer says of itself: its input, its matrix, and another that it accepts."""
    forward = _exported()
    quantized, _ = quantize(forward, SETTINGS)
    (shared, _) = _smoothed(quantized.model)
    site = next(site for use in shared.outputs[0].uses() if (site := LinearSite.of(use.node)) is not None)
    assert site.x is shared.inputs[0]
    wanted = Outliers().q.weight.detach().numpy().T
    np.testing.assert_allclose(_matrix(quantized, "q"), wanted, atol=0.02 * float(np.abs(wanted).max()))


def _matrix(quantized: Forward, name: str) -> np.ndarray:
    """The matrix of a layer, after lowering."""
    from edgepeft_export.graph.custom_ops import lower

    model = quantized.model.clone()
    lower(model)
    sites = [site for node in model.graph if (site := LinearSite.of(node)) is not None]
    site = next(site for site in sites if str(site.weight.name).startswith(name))
    site.with_matrix(site.matrix())  # rounds to the same integers
    return site.matrix()


def test_a_massive_activation_is_rounded_finely() -> None:
    """Where one row would round all others to zero, the activation has 16 bits, and the others 8."""
    model = Outliers().requires_grad_(False)
    model.out.bias.requires_grad_(True)
    model.v.weight[:, 3] = 0  # the massive channel ends in a tanh and a sigmoid
    found = []
    for size in (1.0, 1e5):
        x = _x(0)
        x[0, 0, 3] = size
        _, report = quantize(from_torch(model, {"x": x}), SETTINGS)
        found.append({name for name, smoothing in report.rows.items() if smoothing is not None and smoothing.fine})
    assert found == [set(), {"q.weight", "k.weight", "v.weight"}]


class Tied(nn.Module):
    """A look-up table that is the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(96, 32), nn.Linear(32, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.tanh(self.mix(self.table(ids))), self.table.weight)


def test_a_table_that_is_looked_up_has_the_factors_of_its_head() -> None:
    """Rows that are looked up are divided by the factors, so they stay those of the table."""
    model = Tied().requires_grad_(False)
    model.mix.bias.requires_grad_(True)
    ids = torch.arange(24).reshape(2, 12)
    forward = from_torch(model, {"ids": ids})
    quantized, report = quantize(forward, SETTINGS)
    assert report.rows["table.weight"] is not None
    looked_up = next(node for node in quantized.model.graph if node.op_type == "Gather")
    rows = next(node for node in _smoothed(quantized.model) if looked_up in _before(node))
    fed = {"ids": ids.numpy(), **forward.fixed(forward.parameters)}
    (found,) = GraphRun(quantized.model, [str(rows.outputs[0].name)])(fed).values()
    wanted = model.table.weight.detach().numpy()[:24].reshape(2, 12, 32)
    np.testing.assert_allclose(found, wanted, atol=0.02 * float(np.abs(wanted).max()))


def test_a_large_channel_of_a_table_costs_no_bit() -> None:
    """Neighbouring tokens that are large in one channel do not widen one another's steps, and are looked up exactly."""
    model = Tied().requires_grad_(False)
    model.mix.bias.requires_grad_(True)
    model.table.weight[:, 5] = 4.0  # others are below 4
    forward = from_torch(model, {"ids": torch.arange(24).reshape(2, 12)})
    quantized, _ = quantize(forward, SETTINGS, decided=QuantizationReport())
    values, scale = (_stored(quantized, f"table.weight.{kind}") for kind in ("int8", "scale"))
    table = model.table.weight.detach().numpy()
    np.testing.assert_allclose(values.astype(np.float32) * scale[:, None], table, atol=1.1 * 8 / 127 / 2)
    assert pair_sums(values.T.astype(np.int16)).max() <= LARGEST_PAIR


def _stored(quantized: Forward, name: str) -> np.ndarray:
    value = quantized.model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def _before(node: ir.Node) -> set[ir.Node]:
    """The nodes that a node depends on."""
    found, pending = set[ir.Node](), [node]
    while pending:
        makers = [maker for value in pending.pop().inputs if value is not None and (maker := value.producer())]
        pending += [maker for maker in makers if maker not in found]
        found.update(makers)
    return found
