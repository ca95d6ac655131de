"""Describe the feature extractor of a model directory by the fields of a manifest.

It is run on a few recordings, and compared with what a device computes. Features other than samples, such as spectra,
are given as arrays.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgepeft.data.sound.recordings import processed
from edgepeft.sources.errors import UnusableFeatureExtractor
from edgepeft_runtime.bundle.manifest import AudioSpec
from edgepeft_runtime.notices import notice

FILE = "preprocessor_config.json"
VOCABULARY = "vocab.json"
_TOLERANCE = 1e-5


def audio_spec(folder: Path, name: str) -> AudioSpec | None:
    """Return how recordings become the input of this name; ``None``, with a notice, where they are given as arrays.

    Raises:
        UnusableFeatureExtractor: The feature extractor cannot be loaded, or computes something else.
    """
    if not (folder / FILE).is_file():
        notice(f"{folder} has no {FILE}: the bundle takes samples at 16,000 Hz with mean 0 and variance 1.")
        return AudioSpec(name, 16_000)
    from transformers import AutoFeatureExtractor

    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        rate, normalize = int(extractor.sampling_rate), bool(getattr(extractor, "do_normalize", False))
    except Exception as error:  # transformers raises any exception
        raise _refused(folder, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}") from error
    if name not in extractor.model_input_names or getattr(extractor, "num_mel_bins", None):
        notice(f"{folder}: {type(extractor).__name__} computes features of sound: the bundle takes arrays (.npz).")
        return None
    spec = AudioSpec(name, rate, normalize)
    for length in (400, 1601):
        samples = np.random.default_rng(length).standard_normal(length).astype(np.float32) * 0.1 + 0.05
        expected = np.asarray(extractor(samples, sampling_rate=rate, return_tensors="np")[name][0], np.float32)
        actual = processed(samples, spec)
        if actual.shape != expected.shape or np.abs(actual - expected).max() > _TOLERANCE * np.abs(expected).max():
            raise _refused(folder, f"{type(extractor).__name__} computes something else than its fields say")
    return spec


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
