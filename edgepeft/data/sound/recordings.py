"""Recordings as inputs of a model: read, resampled, normalized, and padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.errors import NoRecordings
from edgepeft.data.sound.resampling import resampled
from edgepeft.data.sound.spectrogram import log_mel
from edgepeft.data.sound.wav import Samples, read_wav
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import AudioSpec
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import notice

SUFFIXES = (".wav", ".wave")
_SMALLEST_VARIANCE = 1e-7
"""Added to the variance, as transformers' feature extractors do."""


@dataclass(frozen=True)
class Recordings:
    """Recordings with labels.

    Attributes:
        samples: The samples of each recording, at the model's rate, normalized. Spectrograms, which are larger, are
            computed for each batch.
        audio: How recordings become inputs.
        dtype: That of the input.
        labels: Labels by name, ``[recordings, ...]`` each.
        sequences: Class labels of different lengths by name, with the label that pads them.
    """

    samples: Sequence[Samples]
    audio: AudioSpec
    dtype: str
    labels: Mapping[str, Array] = field(default_factory=dict)
    sequences: Mapping[str, tuple[Sequence[NDArray[np.int64]], int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """Return the recordings at these indices, with silence after the end of shorter ones."""
        samples = [self.samples[row] for row in rows]
        arrays: dict[str, Array] = {self.audio.input: inputs_of(samples, self.audio, self.dtype)}
        if self.audio.mask is not None:
            arrays[self.audio.mask] = _padded([np.ones(len(own)) for own in samples], 0, "int64")
        for name, (ids, fill) in self.sequences.items():
            arrays[name] = _padded([ids[row] for row in rows], fill, "int64")
        return arrays | {name: array[rows] for name, array in self.labels.items()}


def inputs_of(samples: Sequence[Samples], audio: AudioSpec, dtype: str) -> Array:
    """Return the input of a model from processed samples: these, with silence after shorter ones, or spectrograms."""
    if audio.spectrogram is None:
        return _padded(samples, 0.0, dtype)
    return np.stack([log_mel(own, audio.spectrogram, audio.rate) for own in samples]).astype(dtype)


def _padded(rows: Sequence[Array], fill: float, dtype: str) -> Array:
    """Return rows of different lengths as one array."""
    result = np.full((len(rows), max(map(len, rows))), fill, dtype)
    for index, row in enumerate(rows):
        result[index, : len(row)] = row
    return result


def audio_of(manifest: Manifest, source: str) -> tuple[AudioSpec, str]:
    """Return how recordings become the input of a bundle, and the input's dtype. A decoder may read texts beside it."""
    texts = () if manifest.text is None else manifest.text.fields
    inputs = {spec.name: spec.dtype for spec in manifest.inputs if spec.name not in texts}
    if manifest.audio is None or set(inputs) != {manifest.audio.input, manifest.audio.mask} - {None}:
        raise NoRecordings(
            f"The bundle does not accept recordings, and {source} has some.",
            context=f"its inputs: {', '.join(inputs)}",
            hint="give the inputs as .npz, or prepare the bundle from a directory whose preprocessor_config.json names "
            "samples or Whisper's spectrogram.",
        )
    return manifest.audio, inputs[manifest.audio.input]


def read_all(paths: Sequence[Path], audio: AudioSpec, source: str) -> list[Samples]:
    """Read recordings. A line says how many were resampled or cut, and how many have several channels."""
    read, rates, mixed, cut = list[Samples](), dict[int, int](), 0, 0
    longest = None if audio.spectrogram is None else audio.spectrogram.samples
    for path in paths:
        samples, rate, channels = read_wav(path)
        mixed += channels > 1
        if rate != audio.rate:
            rates[rate] = rates.get(rate, 0) + 1
        whole = resampled(samples, rate, audio.rate)
        cut += longest is not None and len(whole) > longest
        read.append(processed(whole[:longest], audio))
    for rate, count in rates.items():
        notice(f"{source}: {count} of {len(paths)} recordings are resampled from {rate} to {audio.rate} Hz.")
    if mixed:
        notice(f"{source}: {mixed} of {len(paths)} recordings have several channels; their mean is used.")
    if cut and longest is not None:
        notice(f"{source}: {cut} of {len(paths)} recordings are cut to {longest / audio.rate:g} seconds.")
    return read


def processed(samples: Samples, audio: AudioSpec) -> Samples:
    """Return what a model's own feature extractor makes of samples at its rate."""
    if not audio.normalize:
        return samples
    deviation = np.sqrt(samples.var() + np.float32(_SMALLEST_VARIANCE))
    normal: Samples = ((samples - samples.mean()) / deviation).astype(np.float32)
    return normal
