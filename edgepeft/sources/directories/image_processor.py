"""Describe the image processor of a model directory by the fields of a manifest.

A device must reproduce the directory's own processor with Pillow and numpy. So both are run on a few images, and a
difference is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.pictures.pixels import fitted, normalized
from edgepeft.sources.errors import UnusableImageProcessor
from edgepeft_runtime.bundle.specs import RESAMPLES, ImageSpec
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig
    from transformers.image_processing_utils import BaseImageProcessor

FILE = "preprocessor_config.json"
INPUT = "pixel_values"
TOLERANCE = 1e-5
"""Largest difference between the device and the processor, relative to the largest value."""

_FIELDS = (
    *("do_resize", "size", "crop_pct", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_pad", "do_flip_channel_order", "do_convert_rgb"),
)
"""Fields that most processors have, for messages."""

_PROBES = ((37, 64), (80, 41), (300, 300), (320, 560))
"""Heights and widths of the images on which the two are compared."""


def image_spec(path: Path, config: PretrainedConfig) -> ImageSpec:
    """Return how images become the input of the model in a directory.

    Args:
        path: The directory. Its ``preprocessor_config.json`` describes the processing of an image.
        config: The model's configuration, with the channels, and the size if there is no such file.

    Raises:
        UnusableImageProcessor: The processor cannot be read, or a device cannot reproduce it.
    """
    channels = int(getattr(config, "num_channels", 3))
    stated = _size_of(config)
    if not (path / FILE).is_file():
        return _assumed(path, channels, stated)
    processor = _loaded(path, stated)
    reference = [_processed(processor, probe, path) for probe in _probes(channels)]
    size = _common_size(processor, reference, path)
    for spec in _candidates(processor, channels, size):
        if all(_agree(spec, probe, expected) for probe, expected in zip(_probes(channels), reference, strict=True)):
            return replace(spec, reduce_labels=True) if _reduces(processor) else spec
    raise _refused(path, processor, "its fields do not describe its results")


def _reduces(processor: BaseImageProcessor) -> bool:
    """Whether 0 in a mask is no class, as in ADE20K; ``reduce_labels`` in older files."""
    return bool(getattr(processor, "do_reduce_labels", False) or getattr(processor, "reduce_labels", False))


def _assumed(path: Path, channels: int, size: tuple[int, int] | None) -> ImageSpec:
    if size is None:
        raise UnusableImageProcessor(
            f"{path} does not say how large its images are.",
            context=f"there is no {FILE}, and config.json has no image_size",
            hint=f"save the model's image processor there: AutoImageProcessor…save_pretrained writes {FILE}.",
        )
    notice(f"{path} has no {FILE}: images are resized to {_text(size)}, with mean and deviation 0.5.")
    return ImageSpec(INPUT, size, channels, (0.5,) * channels, (0.5,) * channels)


def _size_of(config: PretrainedConfig) -> tuple[int, int] | None:
    """Return the height and width in the model's configuration."""
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def _loaded(path: Path, stated: tuple[int, int] | None) -> BaseImageProcessor:
    """Load the processor, on Pillow and numpy. A size that its file lacks is the model's."""
    from transformers import AutoImageProcessor

    try:
        settings = json.loads((path / FILE).read_text("utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"it contains a {type(settings).__name__} instead of an object")
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True, backend="pil")
        if stated is None or "size" in settings or "height" not in dict(processor.size or {}):
            return processor
        size = {"height": stated[0], "width": stated[1]}
        return AutoImageProcessor.from_pretrained(path, local_files_only=True, backend="pil", size=size)
    except Exception as error:  # transformers raises any exception
        raise UnusableImageProcessor(
            f"transformers cannot load the image processor of {path}.",
            context=f"{FILE}: {_first_line(error)}",
            hint="write the file again with save_pretrained, or remove it if the model reads values from -1 to 1.",
        ) from error


def _probes(channels: int) -> Iterator[Image]:
    """Yield images with edges, gradients and noise, the same each time."""
    from PIL import Image

    for seed, (height, width) in enumerate(_PROBES):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
        pixels[: height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[:, None]
        yield Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _processed(processor: BaseImageProcessor, image: Image, path: Path) -> NDArray[np.float32]:
    """Return the processor's result for an image: ``[channels, height, width]``."""
    try:
        return np.asarray(processor(image, return_tensors="np")[INPUT][0], np.float32)
    except Exception as error:  # transformers raises any exception
        name = _name(processor)
        raise UnusableImageProcessor(
            f"The image processor of {path} cannot process an image.",
            context=f"{FILE}: {name}: {_first_line(error)}\nits fields: {_fields(processor)}",
            hint=f"give the fields that {name} reads, as its save_pretrained writes them, or name another class as "
            "image_processor_type.",
        ) from error


def _common_size(processor: BaseImageProcessor, images: list[NDArray[np.float32]], path: Path) -> tuple[int, int]:
    sizes = {image.shape[1:] for image in images if image.ndim == 3}
    if len(sizes) != 1:
        shown = ", ".join(str(image.shape) for image in images)
        raise _refused(path, processor, f"it returns images of different sizes: {shown}")
    height, width = sizes.pop()
    return int(height), int(width)


def _candidates(processor: BaseImageProcessor, channels: int, size: tuple[int, int]) -> Iterator[ImageSpec]:
    """Yield possible meanings of the processor's fields. Some classes enlarge the edge before they crop."""
    mean, std = _normalization(processor, channels)
    order = "BGR" if getattr(processor, "do_flip_channel_order", False) else "RGB"
    for resize in _resizes(processor):
        yield ImageSpec(INPUT, size, channels, mean, std, resize, _filter(processor), order)


def _resizes(processor: BaseImageProcessor) -> list[tuple[int, ...] | None]:
    if not getattr(processor, "do_resize", False):
        return [()]
    given = dict(getattr(processor, "size", None) or {})
    edge, height, width = given.get("shortest_edge"), given.get("height"), given.get("width")
    lengths = (height, width) if height and width else (edge,) if edge else ()
    part = getattr(processor, "crop_pct", None) or 1.0  # of ConvNeXT and PoolFormer; LeViT's is fixed
    enlarged = (lengths, tuple(int(n / part) for n in lengths), tuple(int(256 / 224 * n) for n in lengths))
    return [None, *filter(None, dict.fromkeys(enlarged))]


def _normalization(processor: BaseImageProcessor, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of values from 0 to 1 that are equivalent to the processor's scale, offset and both."""
    rescales, normalizes = getattr(processor, "do_rescale", False), getattr(processor, "do_normalize", False)
    scale = 255.0 * (processor.rescale_factor if rescales else 1.0)
    scale = 1.0 if abs(scale - 1) < 1e-9 else scale
    offset = 1.0 if rescales and getattr(processor, "rescale_offset", False) else 0.0
    means = _per_channel(processor.image_mean if normalizes else 0.0, channels)
    deviations = _per_channel(processor.image_std if normalizes else 1.0, channels)
    again = _per_channel(processor.image_std if getattr(processor, "include_top", False) else 1.0, channels)
    mean = tuple((value + offset) / scale for value in means)
    return mean, tuple(value * more / scale for value, more in zip(deviations, again, strict=True))


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return tuple(float(item) for item in (values * channels if len(values) == 1 else values))


def _filter(processor: BaseImageProcessor) -> str:
    from PIL import Image

    chosen = getattr(processor, "resample", None)
    return "bilinear" if chosen is None else Image.Resampling(int(chosen)).name.lower()


def _agree(spec: ImageSpec, image: Image, expected: NDArray[np.float32]) -> bool:
    if len(spec.mean) != spec.channels or len(spec.std) != spec.channels or spec.resample not in RESAMPLES:
        return False
    try:
        actual = normalized(fitted(image, spec), spec)
    except ValueError:  # resized, it would be too large
        return False
    largest = max(1.0, float(np.abs(expected).max()))
    return actual.shape == expected.shape and bool(np.abs(actual - expected).max() <= TOLERANCE * largest)


def _refused(path: Path, processor: BaseImageProcessor, why: str) -> UnusableImageProcessor:
    return UnusableImageProcessor(
        f"A device cannot reproduce the image processor of {path}.",
        context=f"{FILE}: {_name(processor)}: {why}.\nits fields: {_fields(processor)}",
        hint="give it a fixed size (size with height and width, or do_center_crop with crop_size) and no padding, or "
        "prepare the model by a function (file.py:function) and give the data as .npz.",
    )


def _name(processor: BaseImageProcessor) -> str:
    return type(processor).__name__.removesuffix("Pil")


def _fields(processor: BaseImageProcessor) -> str:
    fields = {name: getattr(processor, name) for name in _FIELDS if getattr(processor, name, None) is not None}
    return ", ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _value(value: Any) -> str:
    try:
        given = {name: size for name, size in dict(value).items() if size is not None}
    except (TypeError, ValueError):
        return str(value)
    return str(given)


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
