"""Resampling, and norms over windows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.nn import functional

from tests.autodiff.rule_cases.case import Case, Constant, Function, ints, x


def scales(*numbers: float) -> Constant:
    return Constant(np.array(numbers, np.float32))


def interpolated(**options: Any) -> Function:
    return lambda a, *_: functional.interpolate(a, **options)


def case(inputs: list[Any], torch: Function, attributes: dict[str, Any], **more: Any) -> Case:
    return Case("Resize", inputs, torch, attributes, differences=False, **more)


def resizes() -> Iterator[Case]:
    """Every mode that torch has, by scales and by sizes, of one to three axes.

    Finite differences are left to the node tests, because the cases' scales would become float64.
    """
    plain, half = x(2, 3, 4, 5), {"coordinate_transformation_mode": "half_pixel"}
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    double = [plain, None, scales(1, 1, 2, 2)]
    yield case(double, interpolated(scale_factor=2), nearest, fixed=(2,))
    yield case(double, interpolated(scale_factor=2, mode="bilinear"), {"mode": "linear"} | half)
    cubic = {"mode": "cubic", "cubic_coeff_a": -0.75} | half
    yield case(double, interpolated(scale_factor=2, mode="bicubic"), cubic)
    aligned = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    larger = interpolated(size=(7, 3), mode="bilinear", align_corners=True)
    yield case([plain, None, None, ints(2, 3, 7, 3)], larger, aligned, fixed_axes=(0, 1))
    smooth = {"mode": "linear", "antialias": 1, "exclude_outside": 1} | half
    smaller = interpolated(size=(2, 3), mode="bilinear", antialias=True)
    yield case([plain, None, None, ints(2, 3)], smaller, {"axes": [2, 3]} | smooth)
    yield case([x(2, 3, 5), None, scales(1, 1, 1.6)], interpolated(scale_factor=1.6), nearest)
    volume = interpolated(scale_factor=(2, 1, 2), mode="trilinear")
    yield case([x(1, 2, 3, 4, 3), None, scales(1, 1, 2, 1, 2)], volume, {"mode": "linear"} | half)


def sampled(**options: Any) -> Function:
    return lambda a, grid: functional.grid_sample(a, grid, **options)


def samples() -> Iterator[Case]:
    """Points inside the image and far outside of it."""
    image, points = x(2, 3, 4, 5), x(2, 3, 2, 2, low=-1.9, high=1.9)
    for mode, padding, aligned in (
        ("linear", "zeros", False),
        ("linear", "border", True),
        ("linear", "reflection", False),
        ("cubic", "reflection", True),
    ):
        options: dict[str, Any] = {"mode": mode, "padding_mode": padding, "align_corners": int(aligned)}
        function = sampled(mode=f"bi{mode}", padding_mode=padding, align_corners=aligned)
        yield Case("GridSample", [image, points], function, options, float32_only=True, differences=False)
    volume = [x(2, 2, 3, 4, 2), x(2, 2, 3, 1, 3, low=-1.2, high=1.2)]
    yield Case(
        "GridSample", volume, sampled(mode="bilinear", align_corners=False), float32_only=True, differences=False
    )
    nearest = sampled(mode="nearest", align_corners=False)
    yield Case("GridSample", [image, points], nearest, {"mode": "nearest"}, float32_only=True, differences=False)


def norms() -> Iterator[Case]:
    """Norms over windows and over channels."""
    window = {"kernel_shape": [3, 2], "strides": [2, 1]}
    yield Case("LpPool", [x(2, 3, 5, 6)], lambda a: functional.lp_pool2d(a, 2, (3, 2), (2, 1)), window)
    cubes: Function = lambda a: functional.lp_pool2d(a.abs(), 3, (3, 2), (2, 1))  # noqa: E731
    yield Case("LpPool", [x(2, 3, 5, 6)], cubes, {"p": 3} | window)
    neighbours = {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}
    yield Case("LRN", [x(2, 5, 4, 3)], lambda a: functional.local_response_norm(a, 3, 0.5, 0.6, 1.5), neighbours)


CASES = [*resizes(), *samples(), *norms()]
