"""Resampling."""

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


CASES = [*resizes()]
