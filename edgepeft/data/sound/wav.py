"""Read ``.wav`` files of whole numbers, as recorders write them."""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import BadRecording
from edgepeft_runtime.files.regular import open_regular

Samples = NDArray[np.float32]


def read_wav(path: Path) -> tuple[Samples, int, int]:
    """Return the samples of a recording from -1 to 1, their rate in Hz, and the number of channels they are a mean of.

    Raises:
        BadRecording: The file cannot be read, is compressed, or has no samples.
    """
    try:
        with os.fdopen(open_regular(path, follow=True), "rb") as content, wave.open(content) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
            samples = _floats(data[: len(data) // (width * channels) * width * channels], width)
    except (OSError, EOFError, wave.Error, ValueError) as failure:
        raise bad_recording(path, str(failure) or type(failure).__name__) from failure
    if not samples.size or rate <= 0:
        raise bad_recording(path, "it has no samples.")
    return samples.reshape(-1, channels).mean(1, dtype=np.float32), rate, channels


def _floats(data: bytes, width: int) -> Samples:
    """Convert samples of 1 to 4 bytes to floats from -1 to 1. Those of one byte have no sign."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if width == 3:
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        values = (parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8
    else:
        values = np.frombuffer(data, f"<i{width}").astype(np.int32)
    return (values.astype(np.float64) / 2.0 ** (8 * width - 1)).astype(np.float32)


def bad_recording(path: Path, why: str) -> BadRecording:
    """Return the error of a recording that cannot be used."""
    return BadRecording(
        f"Cannot read the recording {path}.",
        context=why,
        hint="save it as .wav of 16-bit whole numbers (PCM): ffmpeg -i IN -c:a pcm_s16le OUT.wav, or leave it out.",
    )
