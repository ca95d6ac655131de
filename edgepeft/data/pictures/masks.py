"""Images with a class for each pixel: a folder ``images`` and a folder ``masks`` with files of the same names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import NoClass
from edgepeft.data.pictures.decoding import bad_image, decoded
from edgepeft.data.pictures.folder import SUFFIXES, read_image
from edgepeft.data.pictures.pixels import fitted, normalized
from edgepeft_runtime.bundle.specs import ImageSpec, LabelSpec
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array

IMAGES, MASKS = "images", "masks"
_NOTHING = 255
"""Value of pixels without a class in masks whose labels are reduced."""


@dataclass(frozen=True)
class Segmented:
    """Images as ``[batch, channels, height, width]`` and classes of pixels as ``[batch, height, width]``.

    Attributes:
        pairs: The path of each image, and of its mask if there is one.
        spec: How images become inputs. Masks are resized to the nearest pixel and cropped in the same way.
        dtype: That of the input.
        label: The label; ``None`` if labels are not needed.
    """

    pairs: list[tuple[Path, Path | None]]
    spec: ImageSpec
    dtype: str
    label: LabelSpec | None

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the images at these indices, and the classes of their pixels."""
        chosen = [self.pairs[row] for row in rows]
        pixels = np.stack([read_image(image, self.spec) for image, _ in chosen])
        arrays: dict[str, Array] = {
            self.spec.input: np.ascontiguousarray(normalized(pixels, self.spec), dtype=self.dtype)
        }
        if self.label is not None:
            masks = [read_mask(mask, self.spec, self.label) for _, mask in chosen if mask is not None]
            arrays[self.label.name] = np.stack(masks)
        return arrays


def read_mask(path: Path, spec: ImageSpec, label: LabelSpec) -> Array:
    """Return the class of each pixel, ``[height, width]``; what is outside of the image is ignored.

    With ``spec.reduce_labels`` 0 and 255 are ignored, and the other values are one more than their class.
    """
    from PIL import Image

    picture, nearest = decoded(path, None), replace(spec, channels=1, resample="nearest")
    if picture.mode not in ("L", "P"):
        raise bad_image(path, f"a mask has one value for each pixel, and this one has {'/'.join(picture.getbands())}")
    values = np.asarray(picture, np.uint8)  # of a palette its numbers
    outside = np.asarray(label.ignore_index or 0, label.dtype)
    try:
        classes = fitted(Image.fromarray(values), nearest)[..., 0].astype(label.dtype)
        inside = fitted(Image.fromarray(np.ones_like(values)), nearest)[..., 0]
    except ValueError as failure:
        raise bad_image(path, str(failure)) from failure
    if spec.reduce_labels:
        classes = np.where((classes == 0) | (classes == _NOTHING), outside, classes - 1)
    return np.where(inside > 0, classes, outside)


def read_segmented(folder: Path, reading_spec: tuple[ImageSpec, str], label: LabelSpec | None) -> Segmented:
    """Read a folder of images and masks. Masks of palettes or grey values have the class as value.

    Raises:
        DataError: There are no images, or an image has no mask.
    """
    inside = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    images = sorted(path for path in inside.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        hint = f"put images into {folder / IMAGES}, and masks of the same names into {folder / MASKS}."
        raise NoData(f"{folder} contains no images.", context=f"suffixes: {', '.join(SUFFIXES)}", hint=hint)
    masks = {path.stem: path for path in (folder / MASKS).glob("*") if path.suffix.lower() in SUFFIXES}
    missing = [path.name for path in images if path.stem not in masks]
    if missing and label is not None:
        raise NoClass(
            f"{len(missing)} images in {inside} have no mask.",
            context=f"the first: {missing[0]}",
            hint=f"put a .png of the same name into {folder / MASKS}, with the class of each pixel as its value.",
        )
    spec, dtype = reading_spec
    return Segmented([(path, masks.get(path.stem)) for path in images], spec, dtype, label)
