"""Resampling, and norms over windows."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tests.autodiff.rule_cases.case import Case, Constant, Function, Given, ints, x


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


def roi_align(bins: tuple[int, int], samples: int, scale: float, half: bool) -> Function:
    """The specification, sample by sample."""

    def apply(image: Tensor, regions: Tensor, *_: Tensor) -> Tensor:
        found = [
            _region(image[at], region * scale, bins, samples, half)
            for at, region in zip((1, 0, 1), regions, strict=True)
        ]
        return torch.stack(found)

    return apply


def _region(image: Tensor, region: Tensor, bins: tuple[int, int], samples: int, half: bool) -> Tensor:
    left, top, right, bottom = region - (0.5 if half else 0.0)
    sizes = [bottom - top, right - left]
    lengths = [(size if half else size.clamp(min=1.0)) / count for size, count in zip(sizes, bins, strict=True)]
    counts = [samples or math.ceil(length.item()) for length in lengths]
    rows = []
    for i, j in product(range(bins[0]), range(bins[1])):
        points = product(range(counts[0]), range(counts[1]))
        read = [
            _pixel(
                image, top + lengths[0] * (i + (a + 0.5) / counts[0]), left + lengths[1] * (j + (b + 0.5) / counts[1])
            )
            for a, b in points
        ]
        rows.append(torch.stack(read).mean(dim=0))
    return torch.stack(rows, dim=-1).reshape(len(image), *bins)


def _pixel(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image[:, 0, 0] * 0.0
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    below, right = int(min(y.item(), height - 2)), int(min(x.item(), width - 2))
    v, u = y - below, x - right
    upper = image[:, below, right] * (1 - u) + image[:, below, right + 1] * u
    lower = image[:, below + 1, right] * (1 - u) + image[:, below + 1, right + 1] * u
    return upper * (1 - v) + lower * v


REGIONS = np.array([[0.37, 0.7, 5.1, 6.2], [1.2, 2.1, 9.4, 4.9], [4.3, 0.2, 6.6, 12.8]], np.float32)


def regions() -> Iterator[Case]:
    """Of fixed samples and of as many as a bin is long, also beyond the image."""
    for samples, half in ((2, True), (0, False)):
        mode = "half_pixel" if half else "output_half_pixel"
        sizes = {"output_height": 2, "output_width": 3, "sampling_ratio": samples, "spatial_scale": 0.5}
        given = [x(2, 3, 5, 6), Given(REGIONS * 2.0), Constant(np.array([1, 0, 1], np.int64))]
        oracle = roi_align((2, 3), samples, 0.5, half)
        yield Case("RoiAlign", given, oracle, {**sizes, "coordinate_transformation_mode": mode}, float32_only=True)


CASES = [*resizes(), *samples(), *norms(), *regions()]
