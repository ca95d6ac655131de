"""Time and memory of a training step, all methods in turn in one run."""

from __future__ import annotations

import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.plan import Batch
from benchmarks.cases import minilm
from benchmarks.methods.entries import ENTRIES, prepare
from benchmarks.turns import start, take_turns
from edgepeft_runtime import Trainer

PEER = "lora"
"""The method that the others' steps are compared with."""


def measure(names: Iterable[str], options: Namespace) -> dict[str, dict[str, Any]]:
    """By name: trained elements, bytes of an update, ms per step, its ratio to LoRA's, peak resident set in MB.

    The batch is that of ``make bench``: 8 x 64 tokens.
    """
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, batch = Path(temporary), minilm.LORA.batch()
        np.savez(folder / "batch.npz", allow_pickle=False, **batch)
        sides = []
        for number, name in enumerate(names):
            bundle = folder / str(number)
            prepared = prepare(ENTRIES[name], minilm.LORA.source(), ENTRIES[name].rate, bundle, [batch])
            found[name] = {"trainable": prepared.trainable, "update_bytes": _update_bytes(bundle, batch, folder)}
            command = [sys.executable, "-m", "benchmarks.sides.device_runtime", folder, bundle.name, options.threads]
            sides.append(start(name, [str(part) for part in command], folder))
        busy = take_turns(sides, options.rounds, options.steps)
        print(f"cores busy with something else: {busy.outside}, with waiting sides: {busy.waiting}")
        for side in sides:
            if side.failure is not None:
                raise SystemExit(f"{side.name}: {side.failure}")
            side.finish()
            found[side.name] |= {"ms": round(statistics.median(side.times), 1), "peak_mb": round(side.peak_rss_mb, 1)}
    for figures in found.values():
        figures["ratio"] = round(figures["ms"] / found[PEER]["ms"], 3) if PEER in found else None
    return found


def _update_bytes(bundle: Path, batch: Batch, folder: Path) -> int:
    """After a step, because SIFT selects its elements in the first."""
    with Trainer.open(bundle) as trainer:
        trainer.step(batch)
        return trainer.save_update(folder / "update.safetensors").stat().st_size
