"""The steps of rounded rows are applied after the last of several integer products of a gradient."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from edgepeft_export.graph.custom_ops import int8_matmul
from tests.autodiff.test_quantized_rules import Bench

RNG = np.random.default_rng(3)
ROWS, NARROW, WIDE = 6, 12, 24
DY = (RNG.normal(size=(2, ROWS // 2, NARROW)) * np.array([1.0, 1e-3, 0.0])[:, None]).astype(np.float32)
X = RNG.normal(size=(2, ROWS // 2, NARROW)).astype(np.float32)


def matrix(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(-60, 60, shape).astype(np.int8), RNG.uniform(1e-3, 3e-3, shape[1]).astype(np.float32)


@pytest.mark.parametrize("kind", ["gated", "plain", "two readers"])
def test_a_gradient_through_a_gate_is_scaled_once(kind: str) -> None:
    """It equals torch's through the float matrices, in rows of very different size."""
    bench, names = Bench(X), ("gate", "up", "down")
    weights = dict(zip(names, [matrix(NARROW, WIDE), matrix(NARROW, WIDE), matrix(WIDE, NARROW)], strict=True))

    def product(x: ir.Value, name: str) -> ir.Value:
        values, scale = (bench.emit.stored(f"{name}.{i}", array) for i, array in enumerate(weights[name]))
        result = int8_matmul(bench.emit, x, values, scale)
        result.shape = ir.Shape([*list(x.shape)[:-1], weights[name][1].size])
        return result

    def op(op_type: str, *inputs: ir.Value) -> ir.Value:
        result = bench.emit.op(op_type, *inputs)
        result.shape = inputs[0].shape
        return result

    gate, up = product(bench.x, "gate"), product(bench.x, "up")
    hidden = op("Mul", gate, op("Sigmoid", gate))
    if kind == "gated":
        hidden = op("Mul", hidden, up)
    y = product(hidden, "down")
    if kind == "two readers":
        y = op("Add", y, op("Mul", y, y))
    have = bench.run(y, DY)

    x = torch.from_numpy(X).requires_grad_()
    wg, wu, wd = (torch.from_numpy(values * scale) for values, scale in weights.values())
    inner = functional.silu(x @ wg) * (x @ wu if kind == "gated" else 1)
    out = inner @ wd
    out = out + out * out if kind == "two readers" else out
    out.backward(torch.from_numpy(DY))
    for row in range(ROWS // 2 - 1):
        wanted = x.grad[:, row].numpy()
        assert np.linalg.norm(have[1][:, row] - wanted) < 0.03 * np.linalg.norm(wanted)
    assert not np.any(have[1][:, -1])

    columns = [node for node in bench.graph if node.op_type == "Mul" and "grad" in str(node.name) and _by_row(node)]
    assert len(columns) == {"gated": 2, "plain": 1, "two readers": 1}[kind]


def _by_row(node: ir.Node) -> bool:
    """Whether a node multiplies the rows of a tensor, and not a column by a column."""
    ranks = [list(value.shape or ()) for value in node.inputs if value is not None]
    return any(shape[-1:] == [1] for shape in ranks) and any(shape[-1:] not in ([1], []) for shape in ranks)
