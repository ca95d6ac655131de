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


def deformed(stride: int, pad: int, dilation: int, groups: int, parts: int) -> Function:
    """As torchvision computes it: a tap reads the four pixels around a moved point, of which those outside are 0."""

    def function(image: Tensor, kernel: Tensor, offset: Tensor, bias: Tensor, mask: Tensor | None = None) -> Tensor:
        (n, c, h, w), (outputs, _, *window) = image.shape, kernel.shape
        count, (height, width) = math.prod(window), offset.shape[2:]
        moved = offset.reshape(n, parts, count, 2, height, width)
        pixels, taps = image.reshape(n, parts, c // parts, h * w), []
        for tap, (i, j) in enumerate(product(*map(range, window))):
            y = torch.arange(height)[:, None] * stride - pad + i * dilation + moved[:, :, tap, 0]
            z = torch.arange(width) * stride - pad + j * dilation + moved[:, :, tap, 1]
            read = torch.zeros(n, parts, c // parts, height, width)
            for row, column in product((y.floor(), y.floor() + 1), (z.floor(), z.floor() + 1)):
                inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
                weight = (1 - (y - row).abs()) * (1 - (z - column).abs()) * inside
                index = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long().reshape(n, parts, 1, -1)
                found = pixels.gather(3, index.expand(-1, -1, c // parts, -1)).reshape(read.shape)
                read = read + found * weight[:, :, None]
            shown = 1.0 if mask is None else mask.reshape(n, parts, count, 1, height, width)[:, :, tap]
            taps.append((read * shown).reshape(n, c, height, width))
        columns = torch.stack(taps, 2).reshape(n, groups, c // groups * count, height * width)
        made = torch.einsum("goi,ngil->ngol", kernel.reshape(groups, outputs // groups, -1), columns)
        return made.reshape(n, outputs, height, width) + bias[:, None, None]

    return function


def deformations() -> Iterator[Case]:
    """Taps inside the image and outside of it; with strides, groups and a mask."""
    plain = [x(2, 2, 4, 5), x(3, 2, 3, 2), x(2, 12, 2, 4), x(3)]
    window = {"kernel_shape": [3, 2]}
    yield Case("DeformConv", plain, deformed(1, 0, 1, 1, 1), window, float32_only=True, differences=False, fixed=(1,))
    grouped = [x(2, 4, 5, 6), x(2, 2, 2, 2), x(2, 16, 3, 3), x(2), x(2, 8, 3, 3)]
    options: dict[str, Any] = {
        "kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [2, 2], "group": 2,
        "offset_group": 2,
    }  # fmt: skip
    whole = deformed(2, 1, 2, 2, 2)
    yield Case("DeformConv", grouped, whole, options, float32_only=True, differences=False, fixed=(1,))


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


CASES = [*resizes(), *samples(), *deformations(), *norms(), *regions()]
