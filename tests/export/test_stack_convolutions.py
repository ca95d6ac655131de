"""A layer's pointwise convolution and that of its LoRA pair become one in train graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from edgepeft_export.passes import stack_convolutions
from tests.support.onnx_runs import session

SIZES = {"x": (2, 4, 5, 5), "u": (2, 2, 5, 5), "w": (16, 4, 1, 1), "v": (16, 2, 1, 1), "b": (16,)}
PAIR = "c = Conv(x, w, b) e = Conv(u, v) y = Add(c, e)"


def model_of(body: str, sizes: dict[str, tuple[int, ...]] = SIZES) -> ir.Model:
    """A model of ``body`` from inputs of those sizes to ``y``."""
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in sizes.items())
    return ir.from_proto(
        parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => (float[n, m, h, w] y) {{ {body} }}'
        )
    )


@pytest.mark.parametrize("body", [PAIR, "c = Conv(x, w) e = Conv(u, v, b) y = Add(e, c)"])
def test_a_sum_of_convolutions_becomes_one(body: str) -> None:
    """It computes the same, with the bias of either, in one convolution."""
    random = np.random.default_rng(0)
    fed = {name: random.normal(size=shape).astype(np.float32) for name, shape in SIZES.items()}
    model = model_of(body)
    before = session(ir.to_proto(model)).run(None, fed)[0]
    assert stack_convolutions(model)
    NameFixPass()(model)
    RemoveUnusedNodesPass()(model)
    assert [node.op_type for node in model.graph] == ["Concat", "Concat", "Conv"]
    np.testing.assert_allclose(session(ir.to_proto(model)).run(None, fed)[0], before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (PAIR.replace("Conv(u, v)", "Conv<strides = [2, 2]>(u, v)"), {"u": (2, 2, 10, 10)}),
        (PAIR.replace("Conv(u, v)", "Conv(u, v, b)"), {}),
        (PAIR.replace("y = Add(c, e)", "s = Add(c, e) y = Mul(s, e)"), {}),
        (PAIR, {"x": (2, 8, 5, 5), "w": (16, 8, 1, 1)}),
        (PAIR, {"x": (2, 4, 2, 2), "u": (2, 2, 2, 2)}),
        (PAIR, {"u": (2, 2, 1, 1)}),
    ],
    ids=["stride", "two biases", "read twice", "wide inputs", "small images", "broadcast"],
)
def test_other_sums_stay(body: str, changed: dict[str, tuple[int, ...]]) -> None:
    """Sums that are something else, and those where copies cost more than they save."""
    assert not stack_convolutions(model_of(body, SIZES | changed))
