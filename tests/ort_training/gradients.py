"""Which gradients ONNX Runtime Training takes, network by network: what ``docs/ORT_TRAINING.md`` is made of.

``own`` is the bundle's train graph in the official layout, ``official`` what ONNX Runtime's own tool builds of the same
forward graph. A cell is supported where the official module gives the gradient of the bundle's train graph (1e-4).
``python -m tests.ort_training.gradients --training-python PYTHON`` tries all of them and writes the page.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import edgepeft
from edgepeft.methods import attach
from edgepeft.methods.base import Method, MethodError, by_name
from edgepeft_export.ort_training import GRADIENTS, OrtTraining
from edgepeft_runtime.errors import EdgepeftError
from tests.matrix import ALL, TITLES
from tests.ort_training.plan import write_plan
from tests.support.exports import shared
from tests.support.networks import Network, to_numpy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ORT_TRAINING.md"
PACKED = ("bert", "llama")
"""Networks that are tried with packed bases too."""

Side = Callable[..., Any]


@dataclass(frozen=True)
class Cell:
    """What came of a gradient on a network; ``error`` is why there is none."""

    network: str
    compute: str
    gradient: str
    error: str | None = None


def places() -> Iterator[tuple[str, str, str]]:
    """Every cell: network, how its base is stored, gradient."""
    for name in ALL:
        for compute in ("fp32", "int8", "int4") if name in PACKED else ("fp32",):
            for gradient in GRADIENTS:
                yield name, compute, gradient


def try_cell(name: str, compute: str, gradient: str, folder: Path, python: Path, side: Side) -> Cell:
    """Make the artifacts and compare one gradient; a refusal is a result too."""
    network = ALL[name]
    torch.manual_seed(0)
    try:
        edgepeft.prepare(
            attach(_method(network), network.model()),
            network.example(),
            loss=network.loss,
            compute=compute,
            engine=OrtTraining(gradient, python),
            out=folder / "bundle",
        )
    except EdgepeftError as error:
        # without the node's name: another release of the exporter may give it another one
        return Cell(name, compute, gradient, str(error.context).partition(" for node ")[0])
    write_plan(folder, [(0.1, [to_numpy(*batch)]) for batch in network.batches(1)])
    found = side("gradients", folder)
    assert found["largest"] > 0
    if found["difference"] <= 1e-4 * max(found["largest"], 1e-3):
        return Cell(name, compute, gradient)
    assert gradient == "official", (name, compute, found)  # ours is PyTorch's, as the tests of methods have it
    return Cell(name, compute, gradient, "A gradient is built, and it is not PyTorch's.")


def _method(network: Network) -> Method:
    """LoRA as it fits by default, else biases, else everything."""
    for method in ("lora", "bitfit"):
        try:
            attach(by_name(method), network.model())
        except MethodError:
            continue
        return by_name(method)
    return by_name("full")


def page(cells: list[Cell]) -> str:
    """The text of ``docs/ORT_TRAINING.md``."""
    by_place = {(cell.network, cell.compute, cell.gradient): cell for cell in cells}
    lines = [
        "# ONNX Runtime Training",
        "",
        "Written by `python -m tests.ort_training.gradients --training-python PYTHON`; `make slow` tries it all again.",
        "",
        "`edgepeft export-ort-training BUNDLE` adds what the training builds of ONNX Runtime 1.19 take, on phones too:",
        "`training_model.onnx`, `eval_model.onnx`, `optimizer_model.onnx`, `checkpoint` and `nominal_checkpoint`. User",
        "inputs are the bundle's inputs and labels, in the manifest's order; the first output is the mean loss. Labels",
        "are not checked there: 1.19.2 takes any. The checkpoint holds the adapter; `edgepeft pull` takes it back.",
        "",
        "✓: the module of onnxruntime-training 1.19.2 gives the gradient of the bundle's own train graph (1e-4).",
        "*own* is that graph in the official layout (the default), *official* what ONNX Runtime's own tool builds",
        "(`--gradient official`); where it builds none, its error stands here.",
        "",
        "| network | base | own | official |",
        "|---|---|---|---|",
    ]
    for name, compute in dict.fromkeys((cell.network, cell.compute) for cell in cells):
        texts = [by_place[name, compute, gradient].error or "✓" for gradient in GRADIENTS]
        lines.append(f"| {TITLES[name]} | {compute} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def expected(name: str, compute: str, gradient: str) -> str | None:
    """The error that the page has for a cell; ``None`` where it is supported."""
    start = f"| {TITLES[name]} | {compute} |"
    row = next(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(start))
    found = [part.strip() for part in row.strip("|").split("|")][2 + GRADIENTS.index(gradient)]
    return None if found == "✓" else found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ort_training.gradients", description=__doc__)
    parser.add_argument("--training-python", type=Path, required=True)
    python = parser.parse_args().training_python.absolute()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    def side(*arguments: str | Path) -> Any:
        command = [str(python), "-m", "tests.ort_training.side", *map(str, arguments)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout)

    cells = []
    with tempfile.TemporaryDirectory() as exports, shared(Path(exports)):
        for place in places():
            with tempfile.TemporaryDirectory() as folder:
                cells.append(try_cell(*place, Path(folder), python, side))
            print(*place, cells[-1].error or "ok", flush=True)
    PAGE.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
