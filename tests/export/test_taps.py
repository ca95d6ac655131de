"""Trained convolutions to few channels are products for all taps in train graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx_ir.passes.common import NameFixPass

from edgepeft_export.passes import multiply_by_taps
from tests.support.onnx_runs import session

RANDOM = np.random.default_rng(0)


def _model(options: str, weight: tuple[int, ...], image: str, frozen: bool = False, bias: bool = False) -> ir.Model:
    inputs = [f"float[{image}] x", *([] if frozen else [f"float[{', '.join(map(str, weight))}] w"])]
    body = f"y = Conv<{options}>(x, w{', b' if bias else ''})"
    signature = f"({', '.join(inputs + (['float[2] b'] if bias else []))}) => (float[n, m, h, w] y)"
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {signature} {{ {body} }}')
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    if frozen:
        proto.graph.initializer.append(numpy_helper.from_array(RANDOM.random(weight, np.float32), "w"))
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    ("options", "weight", "image"),
    [
        ("pads = [1, 1, 1, 1]", (2, 16, 3, 3), "n, 16, 6, 7"),
        ("pads = [1, 1, 1, 1]", (2, 16, 3, 3), "n, 16, height, width"),
        ("pads = [0, 1, 2, 0]", (2, 16, 3, 2), "n, 16, 6, 7"),
        ("strides = [1, 1]", (1, 9, 2, 3), "n, 9, 6, 7"),
    ],
    ids=["same", "symbolic", "uneven", "no padding"],
)
def test_a_convolution_to_few_channels_is_a_product(options: str, weight: tuple[int, ...], image: str) -> None:
    """With any padding, and images of any size."""
    model = _model(options, weight, image)
    fed = {"x": RANDOM.normal(size=(3, weight[1], 6, 7)).astype(np.float32), "w": RANDOM.random(weight, np.float32)}
    (before,) = session(ir.to_proto(model)).run(None, fed)
    assert multiply_by_taps(model)
    NameFixPass()(model)
    assert "Conv" not in {node.op_type for node in model.graph}
    (after,) = session(ir.to_proto(model)).run(None, fed)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "weight", "frozen", "bias"),
    [
        ("pads = [1, 1, 1, 1]", (2, 16, 3, 3), True, False),
        ("pads = [1, 1, 1, 1]", (2, 16, 3, 3), False, True),
        ("pads = [1, 1, 1, 1]", (3, 16, 3, 3), False, False),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", (2, 16, 3, 3), False, False),
        ("pads = [2, 2, 2, 2], dilations = [2, 2]", (2, 16, 3, 3), False, False),
        ("pads = [3, 0, 0, 0]", (2, 16, 3, 3), False, False),
        ('auto_pad = "SAME_UPPER"', (2, 16, 3, 3), False, False),
        ("group = 1", (2, 16, 1, 1), False, False),
    ],
    ids=["frozen", "bias", "not narrow", "stride", "dilation", "wide padding", "automatic padding", "one tap"],
)
def test_other_convolutions_stay(options: str, weight: tuple[int, ...], frozen: bool, bias: bool) -> None:
    """Those that are something else, and those for which it does not pay."""
    assert not multiply_by_taps(_model(options, weight, "n, 16, 6, 7", frozen, bias))
