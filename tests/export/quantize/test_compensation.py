"""Rounding errors are compensated by the weights of inputs that go together, under the limits on pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgepeft_export.forward import Forward, from_torch
from edgepeft_export.graph.rounding import LARGEST_PAIR, pair_sums, to_int8
from edgepeft_export.quantize import Quantization, compensation, quantize
from edgepeft_export.quantize.compensation import factor_of, to_compensated
from edgepeft_export.verification import GraphRun

RNG = np.random.default_rng(0)


def _inputs(count: int, mix: np.ndarray) -> np.ndarray:
    """Inputs that depend on a few numbers each, and on some noise."""
    few = RNG.normal(size=(count, len(mix)))
    return np.asarray(few @ mix + 0.1 * RNG.normal(size=(count, mix.shape[1])), np.float32)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_product_of_other_inputs_is_closer(axis: int, both: bool) -> None:
    """Its error is a half of that of plain rounding; pairs stay within the limits, and zeros stay zero."""
    mix = RNG.normal(size=(5, 48))
    matrix = RNG.normal(size=(48, 40)).astype(np.float32)
    matrix[RNG.uniform(size=matrix.shape) < 0.2] = 0
    matrix[7] *= 20  # a channel in which all columns are large
    x, others = _inputs(400, mix), _inputs(100, mix)
    factor = factor_of(x.T @ x)
    assert factor is not None
    stored = matrix if axis == 1 else np.ascontiguousarray(matrix.T)
    made = [to_int8(stored, axis, both=both), to_compensated(stored, axis, factor, both=both)]
    found = []
    for rounded in made:
        values = rounded.values if axis == 1 else rounded.values.T
        assert pair_sums(values.astype(np.int16)).max() <= LARGEST_PAIR
        assert not both or pair_sums(values.T.astype(np.int16)).max() <= LARGEST_PAIR
        assert not values[matrix == 0].any()
        found.append(np.linalg.norm(others @ (values * rounded.scale - matrix)))
    assert found[1] < 0.5 * found[0]


def test_inputs_that_no_data_uses_are_rounded_plainly() -> None:
    """Without any there is nothing to compensate; an unused one passes no error on."""
    assert factor_of(np.zeros((4, 4))) is None
    assert factor_of(np.full((4, 4), np.nan)) is None
    covariance = np.diag([1.0, 0.0, 1.0, 1.0])
    matrix = RNG.normal(size=(4, 6)).astype(np.float32)
    factor = factor_of(covariance)
    assert factor is not None
    plain, other = to_int8(matrix, 1), to_compensated(matrix, 1, factor, both=True)
    np.testing.assert_array_equal(plain.values, other.values)


class Net(nn.Module):
    """Two matmuls of one activation and one of another, all of inputs that go together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.a, self.b, self.out = nn.Linear(6, 64), nn.Linear(64, 48), nn.Linear(64, 48), nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.mix(x)
        out: torch.Tensor = self.out(torch.tanh(self.a(h)) * self.b(h))
        return out


def test_calibration_data_make_a_model_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other data than these, also where they are measured in parts; another graph has the same integers.

    The layout of the backward pass has the integers of plain rounding.
    """
    model = Net().requires_grad_(False)
    model.out.bias.requires_grad_(True)
    data = [{"x": torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))} for seed in range(9)]
    forward = from_torch(model, data[0])
    settings = Quantization("int8", smallest=1024, rounding="row", large=0)
    calibration = [{"x": batch["x"].numpy()} for batch in data[1:]]
    plain, _ = quantize(forward, settings)
    whole, report = quantize(forward, settings, calibration)
    assert set(report.rounded) == {"a.weight", "b.weight", "out.weight"}
    monkeypatch.setattr(compensation, "AT_ONCE", 1)
    again, _ = quantize(forward, settings, calibration)
    other, _ = quantize(forward, settings, decided=report)
    alone, _ = quantize(forward, settings, decided=replace(report, rounded={}))
    for name, matrix in report.rounded.items():
        # torch's layout is [out, in], so the forward pass reads the transposed matrix.
        for made in (whole, again, other):
            np.testing.assert_array_equal(_stored(made, f"{name}.int8.transposed"), matrix.values.T)
        np.testing.assert_array_equal(_stored(whole, f"{name}.int8"), _stored(alone, f"{name}.int8"))
        assert (_stored(alone, f"{name}.int8") != matrix.values).any()
    assert _error(forward, whole, data[0]["x"]) < 0.9 * _error(forward, plain, data[0]["x"])


def test_one_layout_is_rounded_for_both_passes() -> None:
    """Compensation would make the gradient coarser."""
    model = Net().requires_grad_(False)
    model.out.bias.requires_grad_(True)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    settings = Quantization("int8", smallest=1024, rounding="row")
    _, report = quantize(from_torch(model, {"x": x}), settings, [{"x": x.numpy()}])
    assert report.rounded == {}


def _stored(forward: Forward, name: str) -> np.ndarray:
    value = forward.model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def _error(forward: Forward, quantized: Forward, x: torch.Tensor) -> float:
    fed = {"x": x.numpy(), **forward.fixed(forward.parameters)}
    exact, rounded = (GraphRun(side.model)(fed)[forward.outputs[0]] for side in (forward, quantized))
    return float(np.linalg.norm(np.asarray(exact, np.float64) - np.asarray(rounded, np.float64)))
