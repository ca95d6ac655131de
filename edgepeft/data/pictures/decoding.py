"""Decode image files of known formats, except those that need far more memory than their file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgepeft.data.errors import BadImage
from edgepeft_runtime.errors import DataError, MissingExtra
from edgepeft_runtime.files.regular import open_regular
from edgepeft_runtime.files.unpacking import room

if TYPE_CHECKING:
    from types import ModuleType

    from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names. It supports many more, some of which run other programs."""

_PIXEL_BYTES = 4
"""Bytes that Pillow uses for a pixel of three colours."""


def decoded(path: Path, mode: str | None) -> Image.Image:
    """Return a Pillow image, upright, in ``L`` or ``RGB``, or in its own mode.

    Raises:
        DataError: The image cannot be decoded, has more than 8 bits, or far more pixels than bytes.
    """
    image, ops = pillow()
    try:
        with os.fdopen(open_regular(path, follow=True), "rb") as content:
            most = room(os.fstat(content.fileno()).st_size)
            with image.open(content, formats=FORMATS) as file:
                _check(file.mode, file.size, most)
                ops.exif_transpose(file, in_place=True)  # cameras store their orientation as metadata
                file.load()
                return file.copy() if mode is None else file.convert(mode)
    except MemoryError as failure:
        raise bad_image(path, "it does not fit into memory.") from failure
    except Exception as failure:  # decoders raise various exceptions, from struct.error to SyntaxError
        raise bad_image(path, _reason(failure)) from failure


def _reason(failure: Exception) -> str:
    """Return Pillow's message, without the name that an open file has in Python."""
    return re.sub(r" <_io\.\w+ .*>", "", str(failure)) or type(failure).__name__


def pillow() -> tuple[ModuleType, ModuleType]:
    """Return Pillow's modules ``Image`` and ``ImageOps``; raises ``DataError`` if it is not installed."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra(
            "Reading images needs the package pillow, which is not installed.",
            context=None,
            hint="pip install 'edgepeft[images]'",
        ) from None
    return Image, ImageOps


def _check(mode: str, size: tuple[int, int], most: int) -> None:
    if mode.startswith(("I", "F")):
        raise ValueError(f"its pixels have more than 8 bits (mode {mode})")
    width, height = size
    if width * height * _PIXEL_BYTES > most:
        raise ValueError(f"its {width} x {height} pixels take more than {most} bytes: too many for a file of its size")


def bad_image(path: Path, context: str) -> DataError:
    """Return the error of an image that cannot be used."""
    return BadImage(
        f"Cannot decode the image {path}.",
        context=context,
        hint="save it again as an 8-bit PNG or JPEG, smaller if it is very large, or leave it out.",
    )
