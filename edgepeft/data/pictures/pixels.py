"""Convert decoded images to a model's input, as transformers' processors do with Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.bundle.specs import ImageSpec
from edgepeft_runtime.files.tensorfile import Array

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 2**24
"""Largest number of pixels of a resized image before the crop, which bounds the longer edge of narrow images."""


def fitted(image: Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """Return a ``PIL.Image`` in mode L or RGB, resized and cropped, as ``[height, width, channels]``.

    Raises:
        ValueError: The image is so narrow that, resized, it would have too many pixels.
    """
    from PIL import Image

    height, width = resized_size(image.height, image.width, spec)
    if height * width > MOST_PIXELS:
        raise ValueError(f"with its shorter edge resized it has {width} x {height} pixels, which is too many")
    sized = image.resize((width, height), Image.Resampling[spec.resample.upper()])
    pixels = np.asarray(sized, dtype=np.uint8).reshape(height, width, spec.channels)
    return _centered(_centered(pixels, spec.size[0], 0), spec.size[1], 1)


def resized_size(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Return the height and width of an image after the resize and before the crop."""
    to = spec.size if spec.resize is None else spec.resize
    if not to:
        return height, width
    if len(to) == 2:
        return to[0], to[1]
    short, long = sorted((height, width))
    longer = int(to[0] * long / short)
    return (longer, to[0]) if width <= height else (to[0], longer)


def normalized(pixels: NDArray[np.uint8], spec: ImageSpec) -> Array:
    """Convert ``[..., height, width, channels]`` to the model's input ``[..., channels, height, width]``, float32."""
    values = pixels.astype(np.float32) / np.float32(255)
    if spec.channel_order == "BGR":
        values = values[..., ::-1]
    normal = (values - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.moveaxis(normal, -1, -3)


def _centered(pixels: NDArray[np.uint8], size: int, axis: int) -> NDArray[np.uint8]:
    """Return the middle of an axis, or all of it padded with zeros."""
    excess = pixels.shape[axis] - size
    if excess >= 0:
        return pixels.take(range(excess // 2, excess // 2 + size), axis=axis)
    before = -(excess // 2)
    border = [(0, 0)] * pixels.ndim
    border[axis] = (before, -excess - before)
    return np.pad(pixels, border)
