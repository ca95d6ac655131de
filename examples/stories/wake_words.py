"""Wake words of one voice are adapted to another one that the model understands badly.

espeak-ng (a Debian package) synthesizes five words in many speeds and pitches. The workstation trains a small network
on an American voice; the device adapts it to a foreign one. PyTorch adapts a copy with the same batches.
"""

from __future__ import annotations

import argparse
import copy
import io
import shlex
import subprocess
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path

import beside
import numpy as np
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft_runtime import Trainer

WORDS = ["computer", "lamp", "music", "stop", "window"]
HOME, AWAY = "en-us+m3", "cs+f2"
BANDS, FRAMES, STEP, WINDOW = 32, 64, 200, 512
EPOCHS, BATCH, LR = 6, 16, 3e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--espeak", default="espeak-ng", help="the command, perhaps with arguments")
    espeak = shlex.split(parser.parse_args().espeak)
    home, away = (recordings(espeak, voice, count) for voice, count in ((HOME, 16), (AWAY, 24)))
    order = np.random.default_rng(0).permutation(len(away["labels"]))
    train, test = ({name: array[rows] for name, array in away.items()} for rows in (order[:60], order[60:]))
    torch.manual_seed(0)
    model = Spotter()
    beside.train(model, loss_of(model), beside.batches(home, BATCH, 20), 5e-3)
    model.eval()
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        edgepeft.prepare(model, torch.zeros(2, 1, BANDS, FRAMES), method="full", classes=WORDS, out=bundle)
        with Trainer.open(bundle) as trainer:
            before, there = trainer.evaluate(test), trainer.evaluate(home)
            trainer.fit(train, epochs=EPOCHS, batch_size=BATCH, lr=LR)
            after = trainer.evaluate(test)
    beside.train(twin, loss_of(twin), beside.batches(train, BATCH, EPOCHS), LR)
    with torch.no_grad():
        expected = (twin(torch.from_numpy(test["input"])).argmax(1).numpy() == test["labels"]).mean()
    print(f"{len(home['labels'])} words of {HOME}, recognized: {there.accuracy:.1%}")
    print(f"{len(train['labels'])} words of {AWAY} to train on, {len(test['labels'])} held out")
    print(f"  accuracy {before.accuracy:.1%} -> {after.accuracy:.1%}")
    beside.compared("accuracy", after.accuracy or 0.0, expected)


class Spotter(nn.Module):
    """Three convolutions and a mean over time: 8,069 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(24, 16, 3, stride=(2, 1), padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, len(WORDS))

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.layers(input).mean(3).flatten(1))


def loss_of(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: nn.functional.cross_entropy(model(batch["input"]), batch["labels"])


def recordings(espeak: list[str], voice: str, count: int) -> dict[str, np.ndarray]:
    """Words in ``count`` speeds and pitches, with noise: spectrograms [words, 1, bands, frames] and labels."""
    draw = np.random.default_rng(0)
    inputs, labels = [], []
    for label, word in enumerate(WORDS):
        for _ in range(count):
            options = ["-s", str(draw.integers(120, 210)), "-p", str(draw.integers(20, 80))]
            said = subprocess.run([*espeak, "-v", voice, *options, "--stdout", word], check=True, capture_output=True)
            inputs.append(spectrogram(samples(said.stdout), draw))
            labels.append(label)
    return {"input": np.stack(inputs)[:, None], "labels": np.array(labels)}


def samples(content: bytes) -> np.ndarray:
    """The samples of a ``.wav`` from a pipe, whose header does not know its length."""
    with wave.open(io.BytesIO(content)) as file:
        header = len(content) - len(content.partition(b"data")[2]) + 4
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
    return np.frombuffer(content[header : header + (len(content) - header) // 2 * 2], "<i2") / 32768


def spectrogram(sound: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Logarithms of energies in bands of equal width on a logarithmic scale, at a random offset in noise."""
    length = STEP * FRAMES + WINDOW
    padded = draw.normal(0, 2e-3, length)
    start = draw.integers(0, max(1, length - len(sound)))
    part = sound[: length - start]
    padded[start : start + len(part)] += part
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP][:FRAMES]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)) ** 2
    edges = np.geomspace(3, WINDOW // 2, BANDS + 1).astype(int)
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    return (np.log(bands + 1e-6) / 6).T.astype(np.float32)


if __name__ == "__main__":
    main()
