"""Recordings become what transformers' feature extractor makes of them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from scipy.signal import resample_poly
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from edgepeft.data.errors import BadRecording
from edgepeft.data.sound.recordings import inputs_of, processed, read_all
from edgepeft.data.sound.resampling import resampled
from edgepeft.data.sound.wav import read_wav
from edgepeft.sources.directories.feature_extractor import audio_spec
from edgepeft.sources.errors import UnusableFeatureExtractor
from edgepeft_runtime.bundle.specs import AudioSpec
from edgepeft_runtime.notices import EdgepeftWarning


def _tone(rate: int, seconds: float = 0.3, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 128), (np.int16, 2**15), (np.int32, 2**31)])
def test_samples_are_those_that_scipy_reads(dtype: type, scale: int, tmp_path: Path) -> None:
    """Whole numbers of one, two and four bytes, from -1 to 1."""
    path, tone = tmp_path / "tone.wav", _tone(8000)
    wavfile.write(path, 8000, (tone * (scale - 1) + (128 if dtype is np.uint8 else 0)).astype(dtype))
    samples, rate, channels = read_wav(path)
    written = wavfile.read(path)[1].astype(np.float64)
    expected = (written - (128 if dtype is np.uint8 else 0)) / scale
    assert (rate, channels) == (8000, 1)
    assert np.abs(samples - expected).max() < 1e-7


def test_three_bytes_a_sample_and_two_channels(tmp_path: Path) -> None:
    """Recorders write 24 bits. Two channels become their mean."""
    path = tmp_path / "tone.wav"
    values = np.array([[0, 2**22], [-(2**23), 2**23 - 1], [-1, 1]])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(3)
        file.setframerate(16000)
        file.writeframes(b"".join(int(v).to_bytes(3, "little", signed=True) for v in values.ravel()))
    samples, _, channels = read_wav(path)
    assert channels == 2
    assert np.allclose(samples, values.mean(1) / 2**23, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_tone_stays_a_tone_at_another_rate(rate: int) -> None:
    """The middle of a resampled tone is the tone; a tone above half the rate is gone, as scipy's filter has it."""
    found, expected = resampled(_tone(rate), rate, 16000), _tone(16000)
    assert abs(len(found) - len(expected)) <= 1
    inner = slice(400, min(len(found), len(expected)) - 400)
    assert np.abs(found[inner] - expected[inner]).max() < 1e-3
    if rate > 30000:
        high = _tone(rate, hertz=12000.0)
        assert np.abs(resampled(high, rate, 16000)[inner]).max() < 1e-2
        assert np.abs(resample_poly(high, 16000, rate)[inner]).max() < 1e-2


@pytest.mark.parametrize("normalize", [True, False])
def test_a_device_computes_what_the_feature_extractor_does(normalize: bool) -> None:
    """Samples at the model's rate, with the directory's setting."""
    samples = _tone(16000) + 0.1
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize)
    expected = extractor(samples, sampling_rate=16000, return_tensors="np")["input_values"][0]
    found = processed(samples, AudioSpec("input_values", 16000, normalize))
    assert np.abs(found - expected).max() < 1e-5


def test_a_spectrogram_is_that_of_whisper(tmp_path: Path) -> None:
    """Of short, nearly full and cut recordings, with all settings that the directory names."""
    extractor = WhisperFeatureExtractor(feature_size=20, chunk_length=1, n_fft=512, hop_length=200)
    extractor.save_pretrained(tmp_path)
    spec = audio_spec(tmp_path, "input_features", (2, 20, 80))
    assert spec is not None
    draw = np.random.default_rng(0)
    for length in (300, 9000, 15_900, 16_000, 20_000):
        samples = (0.3 * _tone(16000, 1.25)[:length] + 0.1 * draw.standard_normal(length)).astype(np.float32)
        expected = extractor(samples, sampling_rate=16000, return_tensors="np")["input_features"]
        found = inputs_of([samples], spec, "float32")
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4


def test_fewer_positions_cut_recordings_and_others_are_arrays(tmp_path: Path) -> None:
    """A model reads a second of the thirty that the file names; another kind of features is named, and not computed."""
    WhisperFeatureExtractor(feature_size=20).save_pretrained(tmp_path)
    with pytest.warns(EdgepeftWarning, match=r"cut to 1 seconds.*names 30\."):
        spec = audio_spec(tmp_path, "input_features", (2, 20, 100))
    assert spec is not None and spec.spectrogram is not None and spec.spectrogram.samples == 16_000
    with pytest.raises(UnusableFeatureExtractor, match="cannot reproduce") as failure:
        audio_spec(tmp_path, "input_features", (2, 80, 100))
    assert "20 bins; the model reads 80" in str(failure.value.context)
    ASTFeatureExtractor().save_pretrained(tmp_path)
    with pytest.warns(EdgepeftWarning, match="ASTFeatureExtractor computes features of sound"):
        assert audio_spec(tmp_path, "input_values", (2, 100, 20)) is None


def test_what_was_resampled_and_mixed_is_said(tmp_path: Path) -> None:
    """One line for each, with how many."""
    path = tmp_path / "tone.wav"
    wavfile.write(path, 8000, np.stack([(_tone(8000) * 20000).astype(np.int16)] * 2, 1))
    with pytest.warns(EdgepeftWarning) as said:
        (samples,) = read_all([path], AudioSpec("x", 16000), "the folder")
    assert [str(warning.message) for warning in said] == [
        "the folder: 1 of 1 recordings are resampled from 8000 to 16000 Hz.",
        "the folder: 1 of 1 recordings have several channels; their mean is used.",
    ]
    assert abs(float(samples.mean())) < 1e-5
    assert abs(float(samples.var()) - 1) < 1e-3


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    """Floats and other files, with what to do."""
    floats, text = tmp_path / "floats.wav", tmp_path / "text.wav"
    wavfile.write(floats, 8000, _tone(8000))
    text.write_text("no recording")
    for path in (floats, text, tmp_path / "missing.wav"):
        with pytest.raises(BadRecording) as failure:
            read_wav(path)
        assert "pcm_s16le" in str(failure.value.hint)
