"""Fine-tune MiniLM on a fleet of eight devices, each of which has texts of a few topics only.

The workstation prepares MiniLM once and registers the devices. In each of three rounds it publishes a signed adapter.
Every device joins the round, trains on its own texts and delivers its update, in a process that has only numpy and
onnxruntime (``fleet_device.py``). The workstation verifies and aggregates the updates, and accepts the result only if
the held-out loss does not rise. The remote is a folder; it could be a USB stick. For comparison, every device also
trains alone for the same number of epochs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from device import packages
from docstring_topics import CLASSES
from docstrings import Example
from fleet_topics import encode, prepare, texts
from matplotlib.figure import Figure

import edgepeft
from edgepeft import sync
from edgepeft.aggregation import check_acceptance
from edgepeft.sync import Keys, Terms, Workspace
from edgepeft_runtime import Evaluation, Trainer
from edgepeft_runtime.fleet.device_directory import DeviceDirectory

DEVICES, ROUNDS, EPOCHS = 8, 3, 1


@dataclass(frozen=True)
class Round:
    """The result of a round: accuracy and loss on held-out texts, and the error of averaging A and B."""

    held_out: Evaluation
    merge_error: float


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        work, start = Path(folder), time.monotonic()
        shares, test = texts(DEVICES)
        bundle = prepare(work)
        fleet = Fleet(work, bundle, options.device_python)
        fleet.introduce(shares)
        alone = [evaluate(bundle, update, test) for update in fleet.alone()]
        rounds = together(fleet, bundle, test)
        print_table(rounds, alone)
        draw(rounds, alone, options.picture)
        print(f"{time.monotonic() - start:.0f} s; the curve: {options.picture}")
        check(rounds, alone)


class Fleet:
    """The devices: processes of another environment, two at a time, which share only a folder with the host."""

    def __init__(self, work: Path, bundle: Path, python: Path) -> None:
        self.host, self.remote = Workspace(work / "host"), work / "remote"
        self._work, self._bundle, self._python = work, bundle, python

    def introduce(self, shares: list[list[Example]]) -> None:
        """Give each device its texts and its identity, and print them."""
        installed = packages(self._python)
        print(f"devices: an environment of {len(installed)} packages, {'with' if 'torch' in installed else 'no'} torch")
        keys = Keys(self.host)
        keys.create("topics")
        for number, part in enumerate(shares):
            folder = self._folder(number)
            folder.mkdir(parents=True)
            np.savez(folder / "texts.npz", allow_pickle=False, **encode(part))
            keys.add(folder.name, folder / "identity.json")
            DeviceDirectory(folder / "fleet").adopt(folder / "identity.json")
            counts = {topic: sum(label == topic for _, label in part) for topic in CLASSES}
            main = sorted(counts, key=lambda topic: -counts[topic])[:3]
            most = ", ".join(f"{topic} {counts[topic]}" for topic in main)
            print(f"  {folder.name}: {len(part):3} texts, most of them {most}")

    def take_part(self) -> None:
        """Every device joins the newest round, trains, and delivers."""
        script = Path(__file__).with_name("fleet_device.py")
        self._all(lambda device: [script, self.remote, self._bundle, self._folder(device), EPOCHS])

    def alone(self) -> list[Path]:
        """Train every device alone, for as many epochs as all rounds together."""
        updates = [self._folder(device) / "alone.safetensors" for device in range(DEVICES)]

        def command(device: int) -> list[object]:
            folder = self._folder(device)
            return [
                "-m", "edgepeft", "train", self._bundle, "--data", folder / "texts.npz", "--state", folder / "alone",
                "--update", updates[device], "--epochs", ROUNDS * EPOCHS, "--batch-size", 16, "--schedule", "linear",
                "--warmup", 0.1, "--threads", 1,
            ]  # fmt: skip

        self._all(command)
        return updates

    def _folder(self, device: int) -> Path:
        return self._work / "devices" / f"device-{device}"

    def _all(self, arguments: Callable[[int], list[object]]) -> None:
        def run(device: int) -> None:
            command = [str(part) for part in (self._python, *arguments(device))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, range(DEVICES)))


def together(fleet: Fleet, bundle: Path, test: dict[str, np.ndarray]) -> list[Round]:
    adapter: Path | None = None
    rounds = [Round(evaluate(bundle, None, test), 0.0)]
    for number in range(1, ROUNDS + 1):
        sync.publish(bundle, fleet.host, [fleet.remote], adapter=adapter, terms=Terms(min_devices=DEVICES))
        fleet.take_part()
        assert not sync.collect([fleet.remote], fleet.host).refused
        newest = sync.closing(fleet.host)
        found = edgepeft.aggregate(bundle, newest.updates, adapter=newest.adapter, weights="examples")
        assert len(found.report.updates) == DEVICES and found.report.merge_error is not None
        verdict = check_acceptance(bundle, found.parameters, test, rounds[-1].held_out)
        assert verdict.accepted, f"round {number} made held-out texts worse"
        adapter = found.save(fleet.host.path / f"adapter{number}.safetensors")
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
    """Held-out accuracy by round, and the final one of each device alone."""
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
