"""Train MiniLM on docstring topics with every method and write time, memory, sizes and accuracy to ``methods.json``.

Accuracies are means of several seeds on the device. Each result is written when it is finished, so ``--resume``
continues an interrupted run. Time and memory are those of a step on the batch of ``make bench``, all methods in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.accuracy import device
from benchmarks.accuracy.plan import Batch, cut
from benchmarks.accuracy.tasks import LENGTH, TASKS
from benchmarks.methods import speed
from benchmarks.methods.entries import ENTRIES, RATES, prepare

OUT = Path(__file__).parents[1] / "methods.json"
PAGE = Path(__file__).parents[2] / "docs" / "COMPARISON.md"
TASK = TASKS["docstrings"]
CALIBRATION = 16
"""Batches on which the weights to mask are scored."""
PREFACE = """# Methods side by side

Written by `make bench-methods`, from `benchmarks/methods.json`.

MiniLM learns the topics of docstrings: {texts} texts, {epochs} epochs in batches of {rows}; accuracy on {held_out}
others, mean and deviation over seeds. The base is fp32, the optimizer AdamW; its learning rates are in
`benchmarks/methods/entries.py`, some of them tried on texts kept back (`--tune`), others taken from a method of the
same kind. Time and memory are those of a step on 8 x 64 tokens, all methods in turn in one run, on {machine}.
"""


def main() -> None:
    options = _parser().parse_args()
    warnings.simplefilter("ignore")  # of the exporter, about itself
    train, test = TASK.data(options.texts, options.held_out)
    if options.tune:
        tune(train, options)
        return
    kept: dict[str, Any] = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    cells = _cells(kept, _settings(options)) if options.resume else {}
    for seed in range(options.seeds):
        for name in options.methods:
            if str(seed) not in (done := cells.setdefault(name, {})):
                done[str(seed)] = accuracy(name, ENTRIES[name].rate, seed, train, test, options)
                print(f"{name:28} seed {seed}: {100 * done[str(seed)]:.1f} %", flush=True)
                _write(options, kept | {"accuracy": cells})
    if not options.skip_speed:
        kept["speed"] = kept.get("speed", {}) | speed.measure(options.methods, options)
        _write(options, kept | {"accuracy": cells})
    results = json.loads(options.out.read_text("utf-8"))
    print("\n".join(["", *table(results)]))
    options.page.write_text(page(results), encoding="utf-8")


def tune(train: Batch, options: argparse.Namespace) -> None:
    """Print the accuracy at each learning rate, on a fifth of the training texts that is kept back."""
    size = len(train["labels"]) * 4 // 5
    first, last = ({name: array[part] for name, array in train.items()} for part in (slice(size), slice(size, None)))
    for name in options.methods:
        found = {rate: accuracy(name, rate, 100, first, last, options) for rate in RATES}
        print(f"{name:28} " + "  ".join(f"{rate:g}: {100 * found[rate]:.1f} %" for rate in RATES), flush=True)


def accuracy(name: str, rate: float, seed: int, train: Batch, test: Batch, options: argparse.Namespace) -> float:
    """The share of ``test`` that is right after a run on the device, from the base model on."""
    plan = replace(TASK.plan, learning_rate=rate)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        np.savez(folder / "train.npz", allow_pickle=False, **train)
        np.savez(folder / "test.npz", allow_pickle=False, **test)
        source = TASK.source(seed)
        torch.manual_seed(seed)  # of first values
        few = list(islice(cut(train, 16), CALIBRATION))
        prepare(ENTRIES[name], source, rate, folder / "bundle", few)
        return device.run(folder / "bundle", folder, plan, seed, options.threads)


def page(results: dict[str, Any]) -> str:
    """The text of ``docs/COMPARISON.md``."""
    found, task = results["machine"], results["settings"]["task"]
    where = f"{found['cores']} cores ({found['processor']}, {', '.join(found['instructions'])})"
    return "\n".join([PREFACE.format(**task, machine=where), *table(results), ""])


def table(results: dict[str, Any]) -> list[str]:
    """All figures, a line per method."""
    columns = ("method", "trains", "update, kB", "ms a step", "to lora's", "peak MB", "held out, %", "seeds")
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    for name in ENTRIES:
        figures, values = results.get("speed", {}).get(name), results["accuracy"].get(name, {}).values()
        cells = [""] * 5
        if figures:
            cells = [f"{figures['trainable']:,}", f"{figures['update_bytes'] / 1e3:,.0f}"]
            cells += [f"{figures[key]}" for key in ("ms", "ratio", "peak_mb")]
        lines.append(f"| {' | '.join([name, *cells, _spread([100 * value for value in values]), str(len(values))])} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    about = {
        "machine": machine.describe(),
        "versions": machine.versions(None),
        "settings": _settings(options),
    }
    fresh = options.out.with_suffix(".new")
    fresh.write_text(json.dumps(results | about, indent=2) + "\n", encoding="utf-8")
    fresh.replace(options.out)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "task": asdict(TASK.plan) | {"texts": options.texts, "held_out": options.held_out, "length": LENGTH},
        "entries": {name: asdict(entry) | {"method": repr(entry.method)} for name, entry in ENTRIES.items()},
    }


def _cells(kept: dict[str, Any], settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The accuracies that are there, of runs with the settings of this one."""
    before = kept.get("settings", {})
    if before.get("task") != settings["task"]:
        return {}
    same = {name for name, entry in settings["entries"].items() if before["entries"].get(name) == entry}
    return {name: done for name, done in kept.get("accuracy", {}).items() if name in same}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--methods", nargs="*", default=list(ENTRIES), choices=ENTRIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1200, help="training examples, at most")
    parser.add_argument("--held-out", type=int, default=800, help="held-out examples, at most")
    parser.add_argument("--tune", action="store_true", help="only try the learning rates")
    parser.add_argument("--skip-speed", action="store_true", help="keep the figures of time and memory that are there")
    parser.add_argument("--resume", action="store_true", help="keep accuracies of the same settings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each method in a round")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
