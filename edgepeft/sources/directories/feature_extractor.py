"""Describe the feature extractor of a model directory by the fields of a manifest.

It is run on a few recordings, and compared with what a device computes. Features other than samples and Whisper's
spectrogram are given as arrays.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepeft.data.sound.recordings import inputs_of, processed
from edgepeft.sources.errors import UnusableFeatureExtractor
from edgepeft_runtime.bundle.specs import AudioSpec, SpectrogramSpec
from edgepeft_runtime.notices import notice

if TYPE_CHECKING:
    from transformers import SequenceFeatureExtractor, WhisperFeatureExtractor

FILE = "preprocessor_config.json"
VOCABULARY = "vocab.json"
_TOLERANCE, _SPECTRUM_TOLERANCE = 1e-5, 1e-4


def audio_spec(folder: Path, name: str, shape: tuple[int, ...]) -> AudioSpec | None:
    """Return how recordings become the input of this name; ``None``, with a notice, where they are given as arrays.

    Args:
        folder: The model directory.
        name: The input.
        shape: That of an example: ``[examples, samples]``, or features.

    Raises:
        UnusableFeatureExtractor: The feature extractor cannot be loaded, or computes something else.
    """
    if not (folder / FILE).is_file():
        if len(shape) > 2:
            notice(f"{folder} has no {FILE}: the bundle accepts features of sound as arrays (.npz).")
            return None
        notice(f"{folder} has no {FILE}: the bundle accepts samples at 16,000 Hz with mean 0 and variance 1.")
        return AudioSpec(name, 16_000)
    from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        rate, normalize = int(extractor.sampling_rate), bool(getattr(extractor, "do_normalize", False))
    except Exception as error:  # transformers raises any exception
        raise _refused(folder, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}") from error
    whisper = isinstance(extractor, WhisperFeatureExtractor)
    if name not in extractor.model_input_names or (len(shape) > 2 and not whisper):
        notice(f"{folder}: {type(extractor).__name__} computes features of sound: the bundle accepts arrays (.npz).")
        return None
    spec = _whisper(folder, name, shape, extractor) if whisper else AudioSpec(name, rate, normalize)
    _compare(folder, spec, extractor)
    return spec


def _whisper(folder: Path, name: str, shape: tuple[int, ...], extractor: WhisperFeatureExtractor) -> AudioSpec:
    """Return Whisper's spectrogram, of as many frames as the model has positions for."""
    if extractor.dither or extractor.feature_size != shape[1]:
        raise _refused(folder, f"dither {extractor.dither}, {extractor.feature_size} bins; the model reads {shape[1]}")
    frames, rate = shape[2], int(extractor.sampling_rate)
    if frames * extractor.hop_length != extractor.n_samples:
        seconds = frames * extractor.hop_length / rate
        notice(
            f"{folder}: recordings are cut to {seconds:g} seconds, for which the model has positions; "
            f"{FILE} names {extractor.chunk_length}."
        )
    highest = 8000.0  # transformers' constant
    spectrogram = SpectrogramSpec(
        frames * extractor.hop_length, extractor.n_fft, extractor.hop_length, int(extractor.feature_size), highest
    )
    return AudioSpec(name, rate, False, spectrogram=spectrogram)


def _compare(folder: Path, spec: AudioSpec, extractor: SequenceFeatureExtractor) -> None:
    """Refuse a feature extractor that computes something else than a device."""
    tolerance, longest = (_TOLERANCE, 1601) if spec.spectrogram is None else (_SPECTRUM_TOLERANCE, 20_001)
    longer = {} if spec.spectrogram is None else {"max_length": spec.spectrogram.samples}
    for length in (400, longest):
        samples = np.random.default_rng(length).standard_normal(length).astype(np.float32) * 0.1 + 0.05
        features = extractor(samples, sampling_rate=spec.rate, return_tensors="np", **longer)[spec.input][0]
        expected, actual = np.asarray(features, np.float32), inputs_of([processed(samples, spec)], spec, "float32")[0]
        if actual.shape != expected.shape or np.abs(actual - expected).max() > tolerance * np.abs(expected).max():
            raise _refused(folder, f"{type(extractor).__name__} computes something else than its fields say")


def masks_silence(folder: Path) -> bool:
    """Whether a feature extractor returns a mask of the samples, because the model reads one."""
    try:
        return bool(json.loads((folder / FILE).read_text("utf-8")).get("return_attention_mask"))
    except (OSError, ValueError, AttributeError):
        return False


def characters(folder: Path, size: int) -> tuple[str, ...] | None:
    """Return the character of each class of a model for CTC; ``None`` if the directory does not name them."""
    try:
        by_name = json.loads((folder / VOCABULARY).read_text("utf-8"))
        names = {int(index): str(name) for name, index in by_name.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return tuple(names.get(index, f"<{index}>") for index in range(size)) if max(names, default=size) < size else None


def _refused(folder: Path, why: str) -> UnusableFeatureExtractor:
    return UnusableFeatureExtractor(
        f"A device cannot reproduce the feature extractor of {folder}.",
        context=f"{FILE}: {why}",
        hint="write the file again with save_pretrained, or remove it and give samples with mean 0 and variance 1.",
    )
