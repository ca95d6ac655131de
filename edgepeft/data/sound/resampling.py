"""Change the rate of samples by a low-pass filter, one phase of it at a time (polyphase)."""

from __future__ import annotations

import math

import numpy as np

from edgepeft.data.sound.wav import Samples

_ZEROS = 16
"""Zero crossings of the filter on each side."""

_BETA = 8.0
"""Shape of the Kaiser window: 80 dB of attenuation."""

_ROLLOFF = 0.95
"""Frequency above which the filter cuts, as a fraction of the highest that both rates can represent."""


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """Return the samples at another rate, ``ceil(length * wanted / rate)`` of them."""
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    cutoff = _ROLLOFF * min(1.0, up / down)
    half = math.ceil(_ZEROS / cutoff)
    count = -(-len(samples) * up // down)
    around = np.pad(samples.astype(np.float64), (half, half + down + 1))
    windows = np.lib.stride_tricks.sliding_window_view(around, 2 * half + 1)
    result = np.empty(count)
    for phase in range(min(up, count)):
        first, rest = divmod(phase * down, up)
        taps = np.arange(-half, half + 1) - rest / up
        window = np.i0(_BETA * np.sqrt(np.clip(1 - (taps / (half + 1)) ** 2, 0, None))) / np.i0(_BETA)
        kernel = cutoff * np.sinc(cutoff * taps) * window
        chosen = result[phase::up]
        chosen[:] = windows[first::down][: len(chosen)] @ (kernel / kernel.sum())
    return result.astype(np.float32)
