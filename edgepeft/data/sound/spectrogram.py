"""Logarithmic mel spectrograms, as Whisper's feature extractor computes them (Radford et al., 2022)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgepeft.data.sound.wav import Samples
from edgepeft_runtime.bundle.specs import SpectrogramSpec

_LINEAR = 3 / 200
"""Mels per Hz below ``_KNEE``, on the scale of Slaney's Auditory Toolbox."""

_KNEE = 1000.0
"""Frequency in Hz above which the scale is logarithmic."""

_LOGARITHMIC = 27 / np.log(6.4)
"""Mels per unit of the natural logarithm of the frequency above ``_KNEE``."""

_FLOOR = 1e-10
"""Smallest power."""

_RANGE = 8.0
"""Decades below the loudest value at which values are cut."""


def log_mel(samples: Samples, spec: SpectrogramSpec, rate: int) -> NDArray[np.float32]:
    """Return the spectrogram of samples at the model's rate, cut or followed by silence: ``[bins, frames]``.

    Frames that contain silence alone are not transformed.
    """
    half, total = spec.frame // 2, spec.frames
    whole = np.zeros(spec.samples)
    whole[: len(samples)] = samples[: spec.samples]
    around = np.pad(whole, half, mode="reflect")
    sounding = min(total, -(-(min(len(samples), spec.samples) + half) // spec.hop))
    windows = np.lib.stride_tricks.sliding_window_view(around, spec.frame)[:: spec.hop][:sounding]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.frame) / spec.frame)
    power = np.abs(np.fft.rfft(windows * hann, axis=1)) ** 2
    decades = np.full((total, spec.bins), np.log10(_FLOOR))
    decades[:sounding] = np.log10(np.maximum(power @ mel_filters(spec, rate), _FLOOR))
    decades = np.maximum(decades, decades.max() - _RANGE)
    result: NDArray[np.float32] = ((decades + 4) / 4).astype(np.float32).T
    return result


@lru_cache(maxsize=4)
def mel_filters(spec: SpectrogramSpec, rate: int) -> NDArray[np.float64]:
    """Return triangular filters of equal area, equally wide in mels from 0 to ``spec.highest`` Hz.

    The result is ``[frame // 2 + 1, bins]``.
    """
    corners = _hertz(np.linspace(0.0, _mels(spec.highest), spec.bins + 2))
    frequencies = np.linspace(0, rate // 2, spec.frame // 2 + 1)
    widths, distances = np.diff(corners), corners - frequencies[:, None]
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (corners[2:] - corners[:-2]))


def _mels(hertz: float) -> float:
    return _LINEAR * hertz if hertz < _KNEE else float(_LINEAR * _KNEE + _LOGARITHMIC * np.log(hertz / _KNEE))


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    knee = _LINEAR * _KNEE
    return np.where(mels < knee, mels / _LINEAR, _KNEE * np.exp((mels - knee) / _LOGARITHMIC))
