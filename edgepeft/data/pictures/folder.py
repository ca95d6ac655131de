"""Read a folder of images by class: ``folder/<class>/*.png``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import NoClass, NoImages, UnknownClass
from edgepeft.data.labels import BadLabel, label_reader, only_label
from edgepeft.data.pictures.decoding import bad_image, decoded
from edgepeft.data.pictures.pixels import fitted, normalized
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import ImageSpec
from edgepeft_runtime.errors import NoData
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import some
from edgepeft_runtime.notices import notice

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

KEPT_BYTES = 64 * 2**20
"""Largest size of the decoded images kept in memory; further ones are decoded again for each batch."""


class Pictures:
    """Images as ``[batch, channels, height, width]``, resized, cropped and normalized by the bundle's specification.

    Every image is decoded once at the start, so that a broken one fails then and not hours into the training. As many
    as fit into ``KEPT_BYTES`` stay in memory.

    Args:
        paths: The files.
        spec: How images become the input.
        dtype: That of the input.

    Raises:
        DataError: A file cannot be decoded.
    """

    def __init__(self, paths: Sequence[Path], spec: ImageSpec, dtype: str) -> None:
        self._paths, self._spec, self._dtype = paths, spec, dtype
        self._cache: dict[int, NDArray[np.uint8]] = {}
        for row in range(len(paths)):
            self._keep(row, read_image(paths[row], spec))

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the images at the given indices."""
        normal = normalized(np.stack([self._pixels(int(row)) for row in rows]), self._spec)
        return {self._spec.input: np.ascontiguousarray(normal, dtype=self._dtype)}

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        cached = self._cache.get(row)
        return read_image(self._paths[row], self._spec) if cached is None else cached

    def _keep(self, row: int, pixels: NDArray[np.uint8]) -> None:
        if (len(self._cache) + 1) * pixels.nbytes <= KEPT_BYTES:
            self._cache[row] = pixels


class ImageFolder:
    """The images of a folder, with labels if they are needed.

    Args:
        folder: A folder with a folder for each class, whose name is the class or its index. Without labels, images
            may also be in the folder itself.
        manifest: The manifest of a bundle that accepts images.
        labelled: Whether labels are needed.

    Raises:
        DataError: There are no images, a class is unknown, or a file cannot be decoded.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, labelled: bool) -> None:
        spec, dtype = image_spec(f"{folder} is a folder", manifest)
        self._paths, skipped = files_in(folder, SUFFIXES)
        if not self._paths:
            raise NoData(
                f"{folder} contains no images.",
                context=f"suffixes of images: {', '.join(SUFFIXES)}",
                hint=_instead_of(folder),
            )
        self._label = only_label(manifest).name if labelled else ""
        self._labels = class_labels(folder, self._paths, manifest) if labelled else None
        notice_skipped(folder, skipped, "images")
        if self._labels is not None:
            _notice_missing(folder, self._labels, manifest)
        self._pictures = Pictures(self._paths, spec, dtype)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths of the images, in the order of their indices."""
        return tuple(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the images at the given indices, and their labels."""
        arrays = self._pictures.batch(rows)
        if self._labels is not None:
            arrays[self._label] = self._labels[rows]
        return arrays


def image_spec(found: str, manifest: Manifest, beside: Collection[str] = ()) -> tuple[ImageSpec, str]:
    """Return how images become the input of a bundle, and the input's dtype.

    Args:
        found: What the data is, for a message.
        manifest: The bundle's.
        beside: Inputs that are not images.
    """
    inputs = {spec.name: spec.dtype for spec in manifest.inputs}
    spec = manifest.image
    if spec is None or set(inputs) - set(beside) != {spec.input}:
        raise NoImages(
            f"The bundle does not accept images, and {found}.",
            context=f"its inputs: {', '.join(inputs)}",
            hint="give a table of texts (.csv, .tsv, .jsonl, .json or .parquet), or arrays as .npz."
            if manifest.text is not None
            else "give the data as .npz, or prepare the bundle with an image specification.",
        )
    return spec, inputs[spec.input]


def _instead_of(folder: Path) -> str:
    """Return what to do about a folder without images; those of a split are one folder deeper."""
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if files_in(inner, SUFFIXES)[0]:
            return f"give the folder that contains those of the classes, such as {inner}."
    return "put the images of each class in a folder with the name of the class."


def files_in(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Return the files with these suffixes in a folder and its folders, and all other entries but hidden files."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for inner in [path for path in entries if path.is_dir()]:
        entries.remove(inner)
        entries += [path for path in inner.iterdir() if not path.name.startswith(".")]
    found = [path for path in entries if path.suffix.lower() in suffixes and not path.is_dir()]
    return sorted(found), sorted(set(entries) - set(found))


def notice_skipped(folder: Path, skipped: list[Path], what: str) -> None:
    """Report the entries of a folder that are not used."""
    if skipped:
        names = some([str(path.relative_to(folder)) for path in skipped])
        notice(f"{folder}: entries that are not {what} are skipped ({len(skipped)}): {names}.")


def _notice_missing(folder: Path, labels: Array, manifest: Manifest) -> None:
    present = set(labels.tolist())
    missing = [name for index, name in enumerate(manifest.classes or ()) if index not in present]
    if missing:
        notice(f"{folder}: classes without an image: {some(missing)}.")


def class_labels(folder: Path, paths: list[Path], manifest: Manifest) -> Array:
    """Return the label of each file: the name of its folder."""
    read, known = label_reader(manifest), {}
    for path in paths:
        if path.parent == folder:
            raise NoClass(
                f"{path} is not in the folder of a class.",
                context=None,
                hint=f"put it in a folder of {folder} whose name is its class.",
            )
        try:
            known[path.parent] = read(path.parent.name)
        except BadLabel as failure:
            raise UnknownClass(
                f"The name of the folder {path.parent} is not a class.",
                context=str(failure),
                hint="rename the folder, or move it elsewhere.",
            ) from None
    return np.stack([known[path.parent] for path in paths])


def read_image(path: Path, spec: ImageSpec) -> NDArray[np.uint8]:
    """Return an image as ``[height, width, channels]``."""
    upright = decoded(path, "L" if spec.channels == 1 else "RGB")
    try:
        return fitted(upright, spec)
    except ValueError as failure:
        raise bad_image(path, str(failure)) from failure
