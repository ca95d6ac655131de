"""Frozen normalizations become part of the convolutions before them, in train graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx_ir.passes.common import NameFixPass

from edgepeft_export.graph.shapes import dims_of, infer_shapes
from edgepeft_export.passes import fold_norms
from tests.support.onnx_runs import session

SIZES = {
    "w": (6, 4, 3, 3),
    "d": (4, 1, 3, 3),
    "b": (6,),
    "v": (6, 2, 1, 1),
    "scale": (6,),
    "mean": (6,),
    "variance": (6,),
}
RANDOM = np.random.default_rng(0)
PLAIN = "c = Conv<pads=[1, 1, 1, 1]>(x, w, b) y = BatchNormalization(c, scale, bias, mean, variance)"
LORA = """c = Conv<pads=[1, 1, 1, 1]>(x, w) e = Conv(u, v) two = Constant<value_float = 2.0>() l = Mul(e, two)
          a = Add(c, l) y = BatchNormalization<epsilon = 0.01>(a, scale, bias, mean, variance)"""
DEPTHWISE = """c = Conv<pads=[1, 1, 1, 1], group = 4>(x, d) y = BatchNormalization(c, scale, bias, mean, variance)"""
INT8 = """q = DequantizeLinear<axis = 0>(i, steps) c = Conv<pads=[1, 1, 1, 1]>(x, q)
          y = BatchNormalization(c, scale, bias, mean, variance)"""


def model_of(body: str, trained: tuple[str, ...], channels: int = 6) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A model with a frozen tensor for each name but the inputs and ``trained``, which are inputs."""
    names = [name for name in (*SIZES, "bias") if f"{name}," in body or f"{name})" in body]
    draws = {name: RANDOM.normal(size=SIZES.get(name, (6,))).astype(np.float32) for name in names}
    draws |= {name: draws[name][:channels] for name in ("scale", "mean", "variance", "bias")}
    draws["variance"] = np.abs(draws["variance"])
    fed = {"x": RANDOM.normal(size=(2, 4, 5, 5)).astype(np.float32)}
    inputs = ["float[n, 4, 5, 5] x"]
    if "u," in body:
        fed["u"] = RANDOM.normal(size=(2, 2, 5, 5)).astype(np.float32)
        inputs.append("float[n, 2, 5, 5] u")
    for name in trained:
        fed[name] = draws.pop(name)
        inputs.append(f"float[{', '.join(map(str, fed[name].shape))}] {name}")
    if "steps" in body:
        draws |= {"i": RANDOM.integers(-128, 127, SIZES["w"], np.int8), "steps": RANDOM.random(6, np.float32) / 100}
    signature = f"({', '.join(inputs)}) => (float[n, {channels}, 5, 5] y)"
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {signature} {{ {body} }}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in draws.items())
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model, fed


@pytest.mark.parametrize(
    ("body", "trained", "channels", "adds"),
    [
        (PLAIN, (), 6, 0),
        (PLAIN, ("bias",), 6, 0),
        (PLAIN, ("w", "bias"), 6, 0),
        (LORA, ("v",), 6, 1),
        (DEPTHWISE, (), 4, 0),
        (DEPTHWISE, ("bias",), 4, 1),
        (INT8, (), 6, 0),
    ],
)
def test_a_folded_graph_computes_the_same(body: str, trained: tuple[str, ...], channels: int, adds: int) -> None:
    """Whatever trains: no normalization is left, and no node scales an image."""
    model, fed = model_of(body, trained, channels)
    before = session(ir.to_proto(model)).run(None, fed)[0]
    assert fold_norms(model)
    NameFixPass()(model)
    np.testing.assert_allclose(session(ir.to_proto(model)).run(None, fed)[0], before, rtol=2e-5, atol=2e-5)
    infer_shapes(model)
    images = [node.op_type for node in model.graph if dims_of(node.outputs[0])[:1] == ["n"]]
    assert sorted(images) == ["Add"] * adds + ["Conv"] * (len(images) - adds)


@pytest.mark.parametrize(
    ("body", "trained"),
    [
        (PLAIN, ("scale",)),
        (PLAIN.replace("y = ", "z = ") + " y = Add(c, z)", ()),
        (PLAIN.replace("(c,", "(r,").replace("y = ", "r = Relu(c) y = "), ()),
    ],
)
def test_what_trains_or_is_read_elsewhere_is_not_folded(body: str, trained: tuple[str, ...]) -> None:
    """A trained scale needs the normalized value, and another reader the convolution's own result."""
    model, _ = model_of(body, trained)
    assert not fold_norms(model)
