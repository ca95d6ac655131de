"""Convolutions and pooling."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional

from tests.autodiff.rule_cases.case import Case, Function, x

Steps = int | tuple[int, ...]


def conv(stride: Steps = 1, pads: tuple[int, ...] = (), dilation: Steps = 1, group: int = 1) -> Function:
    """Padding as ONNX writes it: all befores, then all afters."""

    def apply(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        half = len(pads) // 2
        flat = [number for axis in reversed(range(half)) for number in (pads[axis], pads[axis + half])]
        run: Function = getattr(functional, f"conv{a.ndim - 2}d")
        return run(functional.pad(a, flat), weight, bias, stride, 0, dilation, group)

    return apply


def transposed(**options: int) -> Function:
    def apply(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        run: Function = {
            3: functional.conv_transpose1d,
            4: functional.conv_transpose2d,
            5: functional.conv_transpose3d,
        }[a.ndim]
        return run(a, weight, bias, **options)

    return apply


def convolutions() -> Iterator[Case]:
    plain = [x(2, 4, 6, 7), x(6, 4, 3, 3), x(6)]
    yield Case("Conv", plain, conv(), fixed=(1,))
    yield Case("Conv", plain, conv(pads=(1, 1, 1, 1)), {"pads": [1, 1, 1, 1]}, fixed=(1,))
    yield Case("Conv", plain, conv(2, (1, 0, 2, 1)), {"strides": [2, 2], "pads": [1, 0, 2, 1]}, fixed=(1,))
    yield Case("Conv", plain, conv((2, 3)), {"strides": [2, 3]}, fixed=(1,))
    yield Case("Conv", plain, conv(dilation=(2, 1)), {"dilations": [2, 1]}, fixed=(1,))
    options: dict[str, Any] = {"strides": [2, 2], "dilations": [2, 2], "pads": [2, 2, 2, 2]}
    yield Case("Conv", plain, conv(2, (2, 2, 2, 2), 2), options, fixed=(1,))
    grouped = [x(2, 4, 6, 7), x(6, 2, 3, 3), x(6)]
    yield Case("Conv", grouped, conv(group=2), {"group": 2}, fixed=(1,))
    options = {"group": 2, "strides": [2, 1], "pads": [1, 1, 1, 1]}
    yield Case("Conv", grouped, conv((2, 1), (1, 1, 1, 1), 1, 2), options, fixed=(1,), fixed_axes=(1,))
    depthwise = [x(2, 4, 6, 7), x(4, 1, 3, 3)]
    options = {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}
    yield Case("Conv", depthwise, conv(2, (1, 1, 1, 1), 1, 4), options, fixed=(1,))
    options = {"group": 4, "strides": [2, 2], "pads": [2, 2, 2, 2]}
    yield Case("Conv", [x(2, 4, 6, 7), x(4, 1, 5, 5)], conv(2, (2, 2, 2, 2), 1, 4), options, fixed=(1,))
    options = {"group": 4, "strides": [3, 2], "dilations": [1, 2]}
    yield Case("Conv", [x(2, 4, 7, 9), x(4, 1, 2, 3)], conv((3, 2), (), (1, 2), 4), options, fixed=(1,))
    yield Case("Conv", [x(2, 4, 4, 4), x(4, 1, 1, 1)], conv(3, (), 1, 4), {"group": 4, "strides": [3, 3]}, fixed=(1,))
    few = [x(2, 9, 5, 6), x(2, 9, 3, 3)]
    yield Case("Conv", few, conv(pads=(1, 0, 1, 2)), {"pads": [1, 0, 1, 2]}, fixed=(1,), fixed_axes=(1,))
    options = {"dilations": [2, 1], "pads": [1, 1, 1, 1]}
    yield Case("Conv", few, conv(1, (1, 1, 1, 1), (2, 1)), options, fixed=(1,), fixed_axes=(1,))
    yield Case("Conv", [x(2, 5, 7), x(2, 5, 4)], conv(), fixed=(1,), fixed_axes=(1,))
    yield Case("Conv", [x(2, 3, 4, 5), x(6, 3, 1, 1), x(6)], conv(), fixed=(1,))
    yield Case("Conv", [x(2, 3, 4, 5), x(6, 3, 1, 1)], conv(2), {"strides": [2, 2]}, fixed=(1,))
    yield Case("Conv", [x(2, 3, 4, 5), x(6, 3, 1, 1)], conv(pads=(1, 0, 0, 1)), {"pads": [1, 0, 0, 1]}, fixed=(1,))
    yield Case("Conv", [x(1, 3, 8, 8), x(5, 3, 4, 4), x(5)], conv(4), {"strides": [4, 4]}, fixed=(1,))
    yield Case("Conv", [x(2, 3, 9), x(4, 3, 3), x(4)], conv(2, (1, 1)), {"strides": [2], "pads": [1, 1]}, fixed=(1,))
    volume = [x(1, 2, 4, 5, 4), x(3, 2, 2, 3, 2), x(3)]
    yield Case("Conv", volume, conv((2, 1, 1)), {"strides": [2, 1, 1]}, fixed=(1,))
    same = conv(pads=(1, 0, 1, 1))
    yield Case("Conv", [x(1, 2, 5, 5), x(3, 2, 3, 2)], same, {"auto_pad": "SAME_UPPER"}, fixed=(1,))
    same = conv(2, (0, 0, 1, 1))
    options = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    yield Case("Conv", [x(1, 2, 6, 6), x(3, 2, 3, 3)], same, options, fixed=(0, 1))
    same = conv(2, (1, 1, 0, 0))
    options = {"auto_pad": "SAME_LOWER", "strides": [2, 2]}
    yield Case("Conv", [x(1, 2, 6, 6), x(3, 2, 3, 3)], same, options, fixed=(0, 1))
    yield Case("Conv", [x(1, 2, 6, 6), x(3, 2, 3, 3)], conv(2), {"auto_pad": "VALID", "strides": [2, 2]}, fixed=(1,))


def transposed_convolutions() -> Iterator[Case]:
    plain = [x(2, 4, 4, 5), x(4, 3, 3, 3), x(3)]
    yield Case("ConvTranspose", plain, transposed(), fixed=(1,))
    options: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    yield Case("ConvTranspose", plain, transposed(stride=2, padding=1, output_padding=1), options, fixed=(1,))
    options = {"strides": [2, 2], "dilations": [2, 2], "group": 2}
    grouped = [x(2, 4, 4, 5), x(4, 3, 3, 3), x(6)]
    yield Case("ConvTranspose", grouped, transposed(stride=2, dilation=2, groups=2), options, fixed=(1,))
    yield Case("ConvTranspose", [x(2, 3, 5), x(3, 2, 2)], transposed(stride=2), {"strides": [2]}, fixed=(1,))
    same = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    yield Case("ConvTranspose", plain, lambda *t: transposed(stride=2)(*t)[..., :-1, :-1], same, fixed=(1,))
    shaped = {"output_shape": [9, 8], "strides": [2, 2]}
    yield Case("ConvTranspose", plain, lambda *t: transposed(stride=2)(*t)[..., 2:-1], shaped, fixed=(0, 1))


def pools() -> Iterator[Case]:
    image, odd = [x(2, 3, 6, 8)], [x(2, 3, 5, 7)]
    by_two = {"kernel_shape": [2, 2], "strides": [2, 2]}
    yield Case("MaxPool", image, lambda a: functional.max_pool2d(a, 2), by_two)
    columns = {**THREE_BY_TWO, "storage_order": 1}
    yield Case("MaxPool", odd, lambda a: functional.max_pool2d(a, 3, 2), columns)
    yield Case("MaxPool", odd, lambda a: functional.max_pool2d(a, 3, 2, 1), {**THREE_BY_TWO, "pads": [1, 1, 1, 1]})
    yield Case(
        "MaxPool", image, lambda a: functional.max_pool2d(a, 3, 2, ceil_mode=True), {**THREE_BY_TWO, "ceil_mode": 1}
    )
    options = {"kernel_shape": [2, 2], "dilations": [2, 2]}
    yield Case("MaxPool", odd, lambda a: functional.max_pool2d(a, 2, 1, dilation=2), options)
    yield Case("MaxPool", [x(2, 3, 8)], lambda a: functional.max_pool1d(a, 3, 1), {"kernel_shape": [3]})
    yield Case(
        "MaxPool",
        [x(1, 2, 4, 4, 4)],
        lambda a: functional.max_pool3d(a, 2),
        {"kernel_shape": [2] * 3, "strides": [2] * 3},
    )
    yield Case("AveragePool", image, lambda a: functional.avg_pool2d(a, 2), by_two)
    yield Case("AveragePool", odd, lambda a: functional.avg_pool2d(a, 3, 2), THREE_BY_TWO)
    counted = {**THREE_BY_TWO, "pads": [1, 1, 1, 1], "count_include_pad": 1}
    yield Case("AveragePool", odd, lambda a: functional.avg_pool2d(a, 3, 2, 1), counted)
    plain = {**THREE_BY_TWO, "pads": [1, 1, 1, 1]}
    yield Case("AveragePool", image, lambda a: functional.avg_pool2d(a, 3, 2, 1, count_include_pad=False), plain)
    ceiled = {**THREE_BY_TWO, "ceil_mode": 1}
    yield Case("AveragePool", image, lambda a: functional.avg_pool2d(a, 3, 2, ceil_mode=True), ceiled, fixed=(0,))
    yield Case("AveragePool", [x(2, 3, 8)], lambda a: functional.avg_pool1d(a, 3, 1), {"kernel_shape": [3]})
    yield Case("GlobalAveragePool", image, lambda a: a.mean((2, 3), keepdim=True))
    yield Case("GlobalAveragePool", [x(2, 3, 5)], lambda a: a.mean(2, keepdim=True))
    yield Case("GlobalMaxPool", image, lambda a: a.amax((2, 3), keepdim=True))


THREE_BY_TWO: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2]}
CASES = [*convolutions(), *transposed_convolutions(), *pools()]

DILATED = {"kernel_shape": [3], "dilations": [2], "auto_pad": "SAME_UPPER"}
BEYOND = {"kernel_shape": [2], "strides": [3], "ceil_mode": 1}
SAME = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
SHAPED = {"output_shape": [8, 8], "strides": [2, 2]}


def nothing(a: Tensor, *_: Tensor) -> Tensor:
    return a.clone()


REFUSED = [
    (Case("Conv", [x(1, 2, 6, 6), x(3, 2, 3, 3)], nothing, SAME, fixed=(1,)), "only the run knows"),
    (Case("Conv", [x(1, 2, 6, 6), x(3, 2, 3, 3)], nothing), "size of its kernel"),
    (Case("ConvTranspose", [x(1, 2, 4, 4), x(2, 3, 3, 3)], nothing, SHAPED, fixed=(1,)), "only the run knows"),
    (
        Case("AveragePool", [x(1, 2, 6, 6)], nothing, {**THREE_BY_TWO, "ceil_mode": 1, "count_include_pad": 1}),
        "hangs over the edge",
    ),
    (Case("AveragePool", [x(1, 2, 6, 6)], nothing, {**THREE_BY_TWO, "ceil_mode": 1}), "sizes that are known"),
    (Case("AveragePool", [x(1, 2, 8)], nothing, DILATED), "pad dilated windows differently"),
    (Case("MaxPool", [x(1, 2, 8)], nothing, DILATED), "pad dilated windows differently"),
    (Case("MaxPool", [x(1, 2, 3)], nothing, BEYOND, fixed=(0,)), "lies in the padding"),
    (Case("AveragePool", [x(1, 2, 3)], nothing, BEYOND, fixed=(0,)), "lies in the padding"),
]
