"""The kernels of the tables, as small graphs with random data: a mask with a pattern flatters a selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper, parser

IMAGE, ROWS = (8, 96, 48, 48), 8
LARGE = 2.0**100
BOUNDS = {
    "zero": np.float32(0),
    "unit": np.float32(1),
    "six": np.float32(6),
    "big": np.float32(3.4e38),
    "minus": np.float32(-1),
}

ELEMENTWISE = {
    "Mul": "o = Mul(x, y)",
    "Add": "o = Add(x, y)",
    "Mul by a number": "o = Mul(x, six)",
    "Sum of three": "o = Sum(x, y, x)",
    "Sum of three by Add": "s = Add(x, y) o = Add(s, x)",
    "Min": "o = Min(x, y)",
    "Clip": "o = Clip(x, zero, six)",
    "Relu": "o = Relu(x)",
    "HardSigmoid (a step)": "o = HardSigmoid<alpha = 3.4e38, beta = 0.0>(x)",
    "Greater": "o = Greater(x, zero)",
    "Sigmoid": "o = Sigmoid(x)",
    "Tanh": "o = Tanh(x)",
    "Erf": "o = Erf(x)",
    "Exp": "o = Exp(x)",
    "Sign": "o = Sign(x)",
    "Sign as Mul, Clip": "m = Mul(x, big) o = Clip(m, minus, six)",
    "PRelu": "o = PRelu(x, y)",
    "PRelu as Relu, Min, Mul, Add": "r = Relu(x) n = Min(x, zero) m = Mul(n, y) o = Add(r, m)",
    "Round": "o = Round(x)",
    "Mask: Greater, Where": "m = Greater(x, zero) o = Where(m, y, zero)",
    "Mask: Greater, Cast, Mul": "m = Greater(x, zero) c = Cast<to = 1>(m) o = Mul(c, y)",
    "Mask: HardSigmoid, Mul": "m = HardSigmoid<alpha = 3.4e38, beta = 0.0>(x) o = Mul(m, y)",
    "Mask between bounds: Greater, Less, And, Cast, Mul": (
        "a = Greater(x, zero) b = Less(x, six) m = And(a, b) c = Cast<to = 1>(m) o = Mul(c, y)"
    ),
    "Mask between bounds: 2 HardSigmoid, 2 Mul": (
        f"a = HardSigmoid<alpha = {LARGE}, beta = 0.0>(x) b = HardSigmoid<alpha = {-LARGE}, beta = {6 * LARGE}>(x) "
        "c = Mul(a, b) o = Mul(c, y)"
    ),
    "Sum over all axes but channels": "axes = Constant<value_ints = [0, 2, 3]>() o = ReduceSum<keepdims = 0>(x, axes)",
    "Transpose of the first two axes": "o = Transpose<perm = [1, 0, 2, 3]>(x)",
}
"""Over two images of 8 x 96 x 48 x 48 random numbers."""


@dataclass(frozen=True)
class Convolution:
    """One form of a convolution of ``ROWS`` square images; its weight is a constant or an input."""

    channels: int
    made: int
    kernel: int
    side: int
    stride: int = 1
    group: int = 1
    constant: bool = True
    transposed: bool = False

    def name(self) -> str:
        """As a row of the table."""
        kind = "depthwise " if self.group > 1 else ""
        weight = "constant" if self.constant else "input"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        operator = "ConvTranspose" if self.transposed else "Conv"
        sizes = f"{self.channels} to {self.made}, {self.kernel} x {self.kernel}{stride}, image {self.side}"
        return f"{operator} {kind}{sizes}, weight {weight}"

    def operations(self) -> float:
        """Multiplications and additions of one run."""
        pixels = self.side**2 if self.transposed else (self.side // self.stride) ** 2
        return 2.0 * ROWS * pixels * self.made * (self.channels // self.group) * self.kernel**2

    def graph(self) -> tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Body, inputs and constants."""
        pad = self.kernel // 2
        options = f"pads = [{pad}, {pad}, {pad}, {pad}], strides = [{self.stride}, {self.stride}], group = {self.group}"
        options += f", output_padding = [{self.stride - 1}, {self.stride - 1}]" if self.transposed else ""
        shape = (self.made, self.channels // self.group, self.kernel, self.kernel)
        draw = np.random.default_rng(0)
        weight = {"w": draw.normal(size=shape).astype(np.float32)}
        x = {"x": draw.normal(size=(ROWS, self.channels, self.side, self.side)).astype(np.float32)}
        body = f"o = {'ConvTranspose' if self.transposed else 'Conv'}<{options}>(x, w)"
        return (body, x, weight) if self.constant else (body, {**x, **weight}, {})


CONVOLUTIONS = [
    *(Convolution(16, 96, 1, 48, constant=constant) for constant in (True, False)),
    *(Convolution(96, 16, 1, 48, constant=constant) for constant in (True, False)),
    *(Convolution(576, 96, 1, 6, constant=constant) for constant in (True, False)),
    *(Convolution(160, 960, 1, 3, constant=constant) for constant in (True, False)),
    *(Convolution(96, 96, 3, 48, group=96, constant=constant) for constant in (True, False)),
    *(Convolution(576, 576, 3, 6, group=576, constant=constant) for constant in (True, False)),
    *(Convolution(64, 64, 3, 24, constant=constant) for constant in (True, False)),
    Convolution(96, 96, 3, 48, stride=2, group=96),
    Convolution(64, 128, 3, 24, stride=2),
    Convolution(96, 96, 3, 24, stride=2, group=96, transposed=True),
    Convolution(128, 128, 3, 12, stride=2, transposed=True),
]

INTEGERS = [Convolution(96, 16, 1, 48), Convolution(64, 64, 3, 24), Convolution(96, 96, 3, 48, group=96)]
"""Convolutions whose int8 forms are compared."""


def forms(conv: Convolution) -> dict[str, tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
    """Ways to convolve fp32 images with a weight of int8: body, inputs and constants by name.

    A scale per channel of the weight, one of the images. Rounding of the images is part of the integer forms.
    """
    body, fed, constants = conv.graph()
    options, float32 = body[body.index("<") : body.index(">") + 1], constants["w"]
    scale = (np.abs(float32).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    columns = scale.reshape(-1, 1, 1, 1)
    int8 = np.round(float32 / columns).astype(np.int8)
    stored = {"w": int8, "s": scale, "c": columns, "z": np.zeros(len(scale), np.int8), "r": columns[:, 0]}
    rounded = "q, qs, qz = DynamicQuantizeLinear(x)"
    fixed = {"xs": np.float32(0.05), "xz": np.uint8(128)}
    found = {
        "fp32": (body, fed, constants),
        "DequantizeLinear, Conv": (f"d = DequantizeLinear<axis = 0>(w, s) o = Conv{options}(x, d)", fed, stored),
        "Cast, Mul, Conv: folded": (f"f = Cast<to = 1>(w) d = Mul(f, c) o = Conv{options}(x, d)", fed, stored),
        "ConvInteger": (
            f"{rounded} i = ConvInteger{options}(q, w, qz) f = Cast<to = 1>(i) t = Mul(qs, r) o = Mul(f, t)",
            fed,
            stored,
        ),
        "QLinearConv": (
            f"q = QuantizeLinear(x, xs, xz) i = QLinearConv{options}(q, xs, xz, w, s, z, xs, xz) "
            "o = DequantizeLinear(i, xs, xz)",
            fed,
            {**stored, **fixed},
        ),
    }
    if conv.group == 1:
        found["im2col, MatMulInteger"] = _columns_form(conv, int8, scale, fed)
    return found


def _columns_form(
    conv: Convolution, weight: np.ndarray, scale: np.ndarray, fed: Mapping[str, np.ndarray]
) -> tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
    """A copy of the image for each tap, the channels last, as rows of one product."""
    taps, pad = conv.kernel, conv.kernel // 2
    constants = {
        "w": np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(-1, conv.made)),
        "s": scale,
        "pads": np.asarray([0, pad, pad, 0, 0, pad, pad, 0], np.int64),
        "axes": np.asarray([1, 2], np.int64),
    }
    lines, parts = ["t = Transpose<perm = [0, 2, 3, 1]>(x) q, qs, qz = DynamicQuantizeLinear(t)"], []
    image = "q"
    if pad:
        image = "p"
        lines.append("p = Pad(q, pads, qz)")
    for row in range(taps):
        for column in range(taps):
            name = f"p{row}{column}"
            constants |= {
                f"a{name}": np.asarray([row, column], np.int64),
                f"b{name}": np.asarray([row + conv.side, column + conv.side], np.int64),
            }
            lines.append(f"{name} = Slice({image}, a{name}, b{name}, axes)")
            parts.append(name)
    lines.append(f"rows = Concat<axis = 3>({', '.join(parts)}) i = MatMulInteger(rows, w, qz)")
    lines.append("f = Cast<to = 1>(i) k = Mul(qs, s) y = Mul(f, k) o = Transpose<perm = [0, 3, 1, 2]>(y)")
    return " ".join(lines), fed, constants


@dataclass(frozen=True)
class Row:
    """A kernel of a table.

    Attributes:
        unit: elements of its result, or operations of a run.
        body: nodes of a graph whose result is ``o``.
        fed, constants: inputs and initializers by name.
    """

    name: str
    unit: float
    body: str
    fed: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]

    def model(self) -> onnx.ModelProto:
        """The graph."""
        inputs = ", ".join(f"float[{', '.join(map(str, array.shape))}] {key}" for key, array in self.fed.items())
        kind = "bool" if self.body.startswith("o = Greater") else "float"
        text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({kind}[] o) {{ {self.body} }}'
        model = parser.parse_model(text)
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), key) for key, value in self.constants.items()
        )
        return model


def elementwise() -> list[Row]:
    """Kernels over two images."""
    draw = np.random.default_rng(0)
    images = {name: (4 * draw.normal(size=IMAGE)).astype(np.float32) for name in ("x", "y")}
    return [
        Row(
            name,
            float(np.prod(IMAGE)),
            body,
            {key: array for key, array in images.items() if key == "x" or "y)" in body or "y," in body},
            BOUNDS,
        )
        for name, body in ELEMENTWISE.items()
    ]


def convolutions() -> list[Row]:
    """Convolutions in fp32."""
    return [Row(c.name(), c.operations(), *c.graph()) for c in CONVOLUTIONS]


def integers() -> list[Row]:
    """Convolutions with int8 weights, in all forms."""
    return [
        Row(f"{c.name().removesuffix(', weight constant')}: {form}", c.operations(), *parts)
        for c in INTEGERS
        for form, parts in forms(c).items()
    ]
