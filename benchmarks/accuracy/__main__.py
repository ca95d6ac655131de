"""Fine-tune on the device and in PyTorch, seed by seed, and write held-out accuracies to ``accuracy.json``.

Both sides start from the same values and follow the same plan: data order, schedule, learning rate and clipping. Each
cell (task, side, seed) is written when it is finished; ``--resume`` continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.accuracy import device, torch_side
from benchmarks.accuracy.plan import CLIP, cut
from benchmarks.accuracy.table import Cell, summary, text
from benchmarks.accuracy.tasks import LENGTH, TASKS, Task
from benchmarks.variants import prepare_variant
from edgepeft.methods import attach
from edgepeft_export.optimizers import AdamW

OUT = Path(__file__).parents[1] / "accuracy.json"
CALIBRATION = 16
"""Batches of training examples on which heads and neurons are scored before they are pruned."""


def main() -> None:
    options = _parser().parse_args()
    warnings.simplefilter("ignore")  # of the exporter, about itself
    cells, settings = _kept(options.out) if options.resume else ([], {})
    for name in options.tasks:
        _agree(name, settings.setdefault(name, _settings(TASKS[name], options)), _settings(TASKS[name], options))
    done = {(cell["task"], cell["column"], cell["seed"]) for cell in cells if "error" not in cell}
    for seed in range(options.seeds):
        for name in options.tasks:
            for column in TASKS[name].columns:
                if column in options.columns and (name, column, seed) not in done:
                    cells = [
                        cell for cell in cells if (cell["task"], cell["column"], cell["seed"]) != (name, column, seed)
                    ]
                    cells.append(measure(name, column, seed, options))
                    print(json.dumps(cells[-1]), flush=True)
                    _write(options.out, cells, settings)
    print(f"\n{text(summary(cells))}")


def measure(name: str, column: str, seed: int, options: argparse.Namespace) -> Cell:
    """One cell: a run from the base model to its held-out accuracy."""
    cell: Cell = {"task": name, "column": column, "seed": seed}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            accuracy = _run(TASKS[name], column, seed, Path(folder), options)
        except Exception as error:
            print(error, file=sys.stderr)
            return cell | {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"}
    return cell | {"accuracy": round(accuracy, 5), "seconds": round(time.perf_counter() - start, 1)}


def _run(task: Task, column: str, seed: int, folder: Path, options: argparse.Namespace) -> float:
    train, test = task.data(options.texts, options.held_out)
    np.savez(folder / "train.npz", allow_pickle=False, **train)
    np.savez(folder / "test.npz", allow_pickle=False, **test)
    source = task.source(seed)
    torch.manual_seed(seed)  # of the adapters' first values
    if column == "torch":
        assert isinstance(source.model, torch.nn.Module)
        return torch_side.run(attach(task.method, source.model), folder, task.plan, seed, options.threads)
    few = list(islice(cut(train, 16), CALIBRATION))
    optimizer = AdamW(lr=task.plan.learning_rate, max_grad_norm=CLIP)
    bundle = prepare_variant(column, source, task.method, optimizer, folder / "bundle", few)
    return device.run(bundle, folder, task.plan, seed, options.threads)


def _settings(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that a cell's figure depends on, apart from its seed."""
    sizes = {"texts": options.texts, "held_out": options.held_out, "length": LENGTH}
    return {**asdict(task.plan), **sizes}


def _kept(path: Path) -> tuple[list[Cell], dict[str, Any]]:
    """Cells and settings of an earlier run."""
    if not path.exists():
        return [], {}
    kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return kept["cells"], kept["settings"]


def _agree(task: str, kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Cells of other settings would not compare."""
    if kept != wanted:
        raise SystemExit(f"there are runs of {task} with other settings: run without --resume, or name another --out")


def _write(path: Path, cells: list[Cell], settings: dict[str, Any]) -> None:
    results = {
        "machine": machine.describe(),
        "versions": machine.versions(),
        "settings": settings,
        "summary": summary(cells),
        "cells": cells,
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    columns = list(dict.fromkeys(column for task in TASKS.values() for column in task.columns))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=2400, help="training examples, at most")
    parser.add_argument("--held-out", type=int, default=1000, help="held-out examples, at most")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--columns", nargs="*", default=columns, choices=columns)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--resume", action="store_true", help="keep the cells that are there")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
