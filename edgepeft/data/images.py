"""A folder of images by class: ``folder/<class>/*.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.decoding import bad_image, decoded
from edgepeft.data.errors import NoClass, NoImages, UnknownClass
from edgepeft.data.labels import BadLabel, label_reader, only_label
from edgepeft.data.pixels import fitted, normalized
from edgepeft_runtime.bundle.manifest import ImageSpec, Manifest
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

KEPT_BYTES = 64 * 2**20
"""Decoded images kept in memory; what goes beyond is decoded again for each batch."""


class ImageFolder:
    """Images as ``[batch, channels, height, width]``: resized, cropped and normalized as the bundle says.

    Every image is decoded once on opening, so that a broken one is met now and not hours into the training.

    Args:
        folder: holds a folder for each class, named as the class or by its number. Without labels, images
            may lie in it directly.
        manifest: of a bundle that takes images.
        labelled: whether labels are needed.

    Raises:
        DataError: no images, an unknown class, or a file that cannot be decoded.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, labelled: bool) -> None:
        self._spec, self._dtype = _image_spec(folder, manifest)
        self._paths, skipped = _images(folder)
        if not self._paths:
            raise NoData(
                f"{folder} holds no images.",
                context=f"looked for {', '.join(SUFFIXES)}",
                hint="put the images of each class in a folder named as the class.",
            )
        self._label = only_label(manifest).name if labelled else ""
        self._labels = _labels(folder, self._paths, manifest) if labelled else None
        _notice_skipped(folder, skipped)
        if self._labels is not None:
            _notice_missing(folder, self._labels, manifest)
        self._kept: dict[int, NDArray[np.uint8]] = {}
        for row in range(len(self._paths)):
            self._keep(row, _decoded(self._paths[row], self._spec))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images, in the order of their numbers."""
        return tuple(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """The images of the given numbers, and their labels."""
        spec = self._spec
        normal = normalized(np.stack([self._pixels(int(row)) for row in rows]), spec)
        arrays: dict[str, Array] = {spec.input: np.ascontiguousarray(normal, dtype=self._dtype)}
        if self._labels is not None:
            arrays[self._label] = self._labels[rows]
        return arrays

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        kept = self._kept.get(row)
        return _decoded(self._paths[row], self._spec) if kept is None else kept

    def _keep(self, row: int, pixels: NDArray[np.uint8]) -> None:
        if (len(self._kept) + 1) * pixels.nbytes <= KEPT_BYTES:
            self._kept[row] = pixels


def _image_spec(folder: Path, manifest: Manifest) -> tuple[ImageSpec, str]:
    inputs = {spec.name: spec.dtype for spec in manifest.inputs}
    spec = manifest.image
    if spec is None or set(inputs) != {spec.input}:
        raise NoImages(
            f"The bundle does not take images, and {folder} is a folder.",
            context=f"its inputs: {', '.join(inputs)}",
            hint="give the data as .npz, or prepare the bundle with an image specification.",
        )
    return spec, inputs[spec.input]


def _images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images in the folder and in the folders in it, and what else is there; hidden files are neither."""
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for place in [path for path in inside if path.is_dir()]:
        inside.remove(place)
        inside += [path for path in place.iterdir() if not path.name.startswith(".")]
    images = [path for path in inside if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    return sorted(images), sorted(set(inside) - set(images))


def _notice_skipped(folder: Path, skipped: list[Path]) -> None:
    if skipped:
        names = some([str(path.relative_to(folder)) for path in skipped])
        notice(f"{folder}: what is no image is skipped ({len(skipped)}): {names}.")


def _notice_missing(folder: Path, labels: Array, manifest: Manifest) -> None:
    there = set(labels.tolist())
    missing = [name for index, name in enumerate(manifest.classes or ()) if index not in there]
    if missing:
        notice(f"{folder}: classes without an image: {some(missing)}.")


def _labels(folder: Path, paths: list[Path], manifest: Manifest) -> Array:
    read, known = label_reader(manifest), {}
    for path in paths:
        if path.parent == folder:
            raise NoClass(
                f"The image {path} lies in no folder of a class.",
                context=None,
                hint=f"put it in a folder of {folder} that is named as its class.",
            )
        try:
            known[path.parent] = read(path.parent.name)
        except BadLabel as failure:
            raise UnknownClass(
                f"The folder {path.parent} is not named as a class.",
                context=str(failure),
                hint="rename the folder, or take it out.",
            ) from None
    return np.stack([known[path.parent] for path in paths])


def _decoded(path: Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """An image as ``[height, width, channels]``."""
    upright = decoded(path, "L" if spec.channels == 1 else "RGB")
    try:
        return fitted(upright, spec)
    except ValueError as failure:
        raise bad_image(path, str(failure)) from failure
