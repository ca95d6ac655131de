"""Models of sound by directory, with recordings of different lengths in a batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

import edgepeft
from edgepeft.data import load
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle

CHARACTERS = ["<pad>", "|", "a", "b", "c"]


def _directory(folder: Path) -> Path:
    """Two convolutions, normalized by layer, so that the model reads a mask of the samples."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(CHARACTERS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        pad_token_id=0,
        ctc_loss_reduction="mean",
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(CHARACTERS)}))
    return folder


def test_silence_after_a_recording_has_no_frames(tmp_path: Path) -> None:
    """The loss is that of transformers with its mask of the samples, and does not depend on the longest of a batch."""
    model = _directory(tmp_path / "model")
    source = edgepeft.load_source(model)
    assert source.audio is not None and source.audio.mask == "attention_mask"
    edgepeft.prepare(source, out=tmp_path / "bundle")
    draw = np.random.default_rng(0)
    for name, length in (("a", 400), ("b", 900)):
        wavfile.write(tmp_path / f"{name}.wav", 8000, draw.integers(-9999, 9999, length).astype(np.int16))
    (tmp_path / "d.csv").write_text("path,sentence\na.wav,ab\nb.wav,c ba\n")
    bundle = Bundle.open(tmp_path / "bundle")
    data = load(tmp_path / "d.csv", bundle)
    reference = Wav2Vec2ForCTC.from_pretrained(model).eval()
    with Trainer.open(bundle) as trainer:
        for rows in ([0], [1], [0, 1]):
            batch = data.batch(np.array(rows))
            fed = {name: torch.from_numpy(array) for name, array in batch.items()}
            with torch.no_grad():
                expected = reference(**fed).loss.item()
            assert abs(trainer.evaluate(batch).loss - expected) < 1e-4 * expected
        short = data.batch(np.array([0]))
        padded = data.batch(np.array([0, 1]))
        silent = {name: array[:1] for name, array in padded.items()}
        assert silent["input_values"].shape[1] > short["input_values"].shape[1]
        assert abs(trainer.evaluate(silent).loss - trainer.evaluate(short).loss) < 1e-5
