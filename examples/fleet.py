"""Eight devices, each with texts of its own few topics, learn together what none of them could alone.

The workstation prepares MiniLM once. In each of three rounds every device fine-tunes the round's adapter on its own
texts, in a process with numpy and onnxruntime alone; the workstation pulls the updates, aggregates them, and lets the
result out only if held-out texts are not read worse. To compare, every device also learns alone, for as long.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from device import packages
from docstring_topics import CLASSES, minilm
from docstrings import Example, collect, split
from matplotlib.figure import Figure
from tokenizers import Tokenizer

import edgepeft
from edgepeft.aggregation import gate
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Evaluation, Trainer

DEVICES, ROUNDS, EPOCHS = 8, 3, 2
TRAIN, TEST, LENGTH = 1600, 400, 32
SKEW = 0.3
"""Concentration of the Dirichlet distribution that shares out each topic: the smaller, the less alike the devices."""


@dataclass(frozen=True)
class Round:
    """What a round came to: accuracy and loss on held-out texts, and what averaging A and B has lost."""

    held_out: Evaluation
    merge_error: float


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        work, start = Path(folder), time.monotonic()
        shares, test = texts(work)
        bundle = prepare(work)
        fleet = Fleet(work, bundle, options.device_python)
        fleet.introduce(shares)
        alone = [evaluate(bundle, update, test) for update in fleet.alone()]
        rounds = together(fleet, bundle, test)
        print_table(rounds, alone)
        draw(rounds, alone, options.picture)
        print(f"{time.monotonic() - start:.0f} s; the curve: {options.picture}")
        check(rounds, alone)


def texts(work: Path) -> tuple[list[list[Example]], dict[str, np.ndarray]]:
    """The devices' shares, each topic dealt out by its own dice, and the held-out texts, as arrays."""
    train, test = split(collect())
    train, test = train[:TRAIN], test[:TEST]
    draw = np.random.default_rng(0)
    shares: list[list[Example]] = [[] for _ in range(DEVICES)]
    for topic in CLASSES:
        owner = draw.choice(DEVICES, sum(label == topic for _, label in train), p=draw.dirichlet([SKEW] * DEVICES))
        for device, example in zip(owner, (example for example in train if example[1] == topic), strict=True):
            shares[device].append(example)
    for device, share in enumerate(shares):
        np.savez(work / f"device{device}.npz", **encode(share))
    return shares, encode(test)


def encode(examples: list[Example]) -> dict[str, np.ndarray]:
    """Token ids and labels: what a device's own software would feed, so that the device needs no tokenizer here."""
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch([text for text, _ in examples])
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "labels": np.array([CLASSES.index(label) for _, label in examples], np.int64),
    }


def prepare(work: Path) -> Path:
    print("workstation: prepare MiniLM with LoRA r=8 on query and value, its base in int8")
    source = edgepeft.load_source(minilm(), task="text-classification", classes=CLASSES, max_length=LENGTH)
    method = edgepeft.Lora(rank=8, alpha=16, target_modules=("query", "value"))
    optimizer = AdamW(lr=2e-3, max_grad_norm=1.0)
    return edgepeft.prepare(source, method=method, compute="int8", optimizer=optimizer, out=work / "bundle").bundle


class Fleet:
    """The devices: processes of another environment, two at a time, which share nothing but files."""

    def __init__(self, work: Path, bundle: Path, python: Path) -> None:
        self.work, self._bundle, self._python = work, bundle, python

    def introduce(self, shares: list[list[Example]]) -> None:
        """Print who they are."""
        installed = packages(self._python)
        print(f"devices: an environment of {len(installed)} packages, {'with' if 'torch' in installed else 'no'} torch")
        for device, share in enumerate(shares):
            counts = {topic: sum(label == topic for _, label in share) for topic in CLASSES}
            main = sorted(counts, key=lambda topic: -counts[topic])[:3]
            print(
                f"  device {device}: {len(share):3} texts, most of them " + ", ".join(f"{t} {counts[t]}" for t in main)
            )

    def train(self, number: int, adapter: Path | None) -> Path:
        """One round on all devices; returns the folder they have left their updates in."""
        inbox = self.work / f"round{number}"
        more = [] if adapter is None else ["--adapter", adapter]
        self._all(f"round{number}", inbox, EPOCHS, more)
        return inbox

    def alone(self) -> list[Path]:
        """Every device for itself, for as many epochs as the rounds have together."""
        folder = self.work / "alone"
        self._all("alone", folder, ROUNDS * EPOCHS, [])
        return [folder / f"device{device}.safetensors" for device in range(DEVICES)]

    def _all(self, what: str, out: Path, epochs: int, more: list[str | Path]) -> None:
        out.mkdir()

        def run(device: int) -> None:
            name = f"device{device}"
            command = [
                self._python, "-m", "edgepeft", "train", self._bundle, "--data", self.work / f"{name}.npz",
                "--state", self.work / "state" / f"{what}-{name}", "--update", out / f"{name}.safetensors",
                "--epochs", epochs, "--batch-size", 16, "--schedule", "linear", "--warmup", 0.1, "--threads", 1, *more,
            ]  # fmt: skip
            subprocess.run([str(part) for part in command], check=True, capture_output=True)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, range(DEVICES)))


def together(fleet: Fleet, bundle: Path, test: dict[str, np.ndarray]) -> list[Round]:
    adapter: Path | None = None
    rounds = [Round(evaluate(bundle, None, test), 0.0)]
    for number in range(1, ROUNDS + 1):
        pulled = fleet.work / f"pulled{number}"
        edgepeft.pull([fleet.train(number, adapter)], pulled)
        found = edgepeft.aggregate(bundle, sorted(pulled.iterdir()), adapter=adapter)
        assert len(found.report.updates) == DEVICES and found.report.merge_error is not None
        verdict = gate(bundle, found.parameters, test, rounds[-1].held_out)
        assert verdict.accepted, f"round {number} made held-out texts worse"
        adapter = found.save(fleet.work / f"adapter{number}.safetensors")
        rounds.append(Round(verdict.after, found.report.merge_error.relative))
    return rounds


def evaluate(bundle: Path, adapter: Path | None, test: dict[str, np.ndarray]) -> Evaluation:
    with Trainer.open(bundle, adapter=adapter) as trainer:
        return trainer.evaluate(test, batch_size=50)


def print_table(rounds: list[Round], alone: list[Evaluation]) -> None:
    print("held out       accuracy   loss   merge error")
    for number, found in enumerate(rounds):
        name = f"round {number}" if number else "before"
        print(f"  {name:12} {_percent(found.held_out)}   {found.held_out.loss:.3f}  {100 * found.merge_error:6.2f} %")
    print(f"  each device alone, {ROUNDS * EPOCHS} epochs: {', '.join(_percent(found) for found in alone)}")


def _percent(found: Evaluation) -> str:
    return f"{100 * (found.accuracy or 0.0):5.1f} %"


def draw(rounds: list[Round], alone: list[Evaluation], path: Path) -> None:
    """Held-out accuracy by round, and where each device ends alone."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, found in enumerate(alone):
        label = "a device alone, as many epochs" if number == 0 else None
        axes.axhline(100 * (found.accuracy or 0.0), color="0.75", linewidth=1, label=label)
    accuracy = [100 * (found.held_out.accuracy or 0.0) for found in rounds]
    axes.plot(range(len(rounds)), accuracy, color="tab:blue", marker="o", label=f"{DEVICES} devices together")
    axes.set(xlabel="round", ylabel="held-out accuracy, %", xticks=range(len(rounds)), ylim=(0, 100))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def check(rounds: list[Round], alone: list[Evaluation]) -> None:
    accuracy = [found.held_out.accuracy or 0.0 for found in rounds]
    best = max(found.accuracy or 0.0 for found in alone)
    assert all(later > earlier for earlier, later in pairwise(accuracy)), "it has to rise"
    assert accuracy[-1] > best, f"together {accuracy[-1]:.3f}, the best device alone {best:.3f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device-python", type=Path, default=Path(sys.executable), help="of the devices' environment")
    parser.add_argument("--picture", type=Path, default=Path("build/fleet.png"), help="where to draw the curve")
    return parser.parse_args()


if __name__ == "__main__":
    main()
