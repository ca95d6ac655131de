"""What each runtime makes of the golden bundle: ``python -m tests.golden.table`` prints how far it is from PyTorch.

A runtime that is not on this machine has a line that says what is missing.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime import Trainer, read_tensors
from tests.aarch64.board import CPUS, ROOT, install
from tests.aarch64.cases import golden
from tests.aarch64.debian import Unavailable
from tests.golden.make import BUNDLE, DATA, EXPECTED
from tests.web.toolchain import browse, drive

SCRIPT = ROOT / "tests" / "aarch64" / "figures.py"
Figures = Mapping[str, Any]
"""``losses`` of the steps, ``evaluation`` and ``outputs`` after them."""


def python(plan: dict[str, Any]) -> Figures:
    """The Python runtime, on this machine."""
    data = read_tensors(DATA).tensors

    def cut(rows: tuple[int, int]) -> dict[str, np.ndarray]:
        return {name: array[slice(*rows)] for name, array in data.items()}

    with Trainer.open(BUNDLE) as trainer:
        losses = [trainer.step(cut(rows)) for rows in plan["steps"]]
        evaluation = vars(trainer.evaluate(cut(plan["evaluate"])))
        outputs = trainer.predict(cut(plan["predict"]))["output"]
    return {"losses": losses, "evaluation": evaluation, "outputs": outputs}


def node(plan: dict[str, Any], ort: str) -> Figures:
    """The TypeScript runtime in Node, on native code or on WebAssembly."""
    with tempfile.TemporaryDirectory() as folder:
        found = drive({"bundle": BUNDLE, "data": DATA, **plan}, Path(folder), ort)
    return {**found, "outputs": found["outputs"]["output"]["data"]}


def emulated(cpu: str) -> Figures:
    """The Python runtime on an emulated Raspberry Pi."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = {**golden().job, "update": str(folder / "update")}
        (folder / "jobs.json").write_text(json.dumps([job]), encoding="utf-8")
        printed = json.loads(install(cpu).python(SCRIPT, folder / "jobs.json", cwd=folder))
    found: Figures = printed["jobs"][0]
    return {**found, "outputs": found["outputs"]["output"]}


def runtimes(plan: dict[str, Any]) -> dict[str, Callable[[], Figures]]:
    """All of them, by name."""
    return {
        f"Python, {platform.machine()}": lambda: python(plan),
        **{f"Python, aarch64 ({CPUS[cpu]})": partial(emulated, cpu) for cpu in CPUS},
        "Node, native": lambda: node(plan, "node"),
        "Node, WebAssembly": lambda: node(plan, "wasm"),
        "Chromium, one thread": lambda: browse("golden", 1),
        "Chromium, two threads": lambda: browse("golden", 2),
    }


def row(found: Figures, expected: dict[str, Any]) -> list[str]:
    """The largest relative distance of the losses, that of the evaluation, accuracy, the largest distance of logits."""
    losses, wanted = np.asarray(found["losses"]), np.asarray(expected["losses"])
    evaluation = found["evaluation"]["loss"] / expected["evaluation"]["loss"] - 1
    logits = np.abs(np.ravel(found["outputs"]) - np.ravel(expected["outputs"]["output"])).max()
    accuracy = "same" if np.isclose(found["evaluation"]["accuracy"], expected["evaluation"]["accuracy"]) else "OTHER"
    return [f"{np.abs(losses / wanted - 1).max():.1e}", f"{abs(evaluation):.1e}", accuracy, f"{logits:.1e}"]


def main() -> None:
    """Print the table."""
    expected = json.loads(EXPECTED.read_text("utf-8"))
    plan = {"steps": expected["batches"], "evaluate": expected["evaluate"], "predict": expected["predict"]}
    print(f"{'runtime':34}{'10 losses':>12}{'evaluation':>12}{'accuracy':>10}{'logits':>10}")
    for name, run in runtimes(plan).items():
        try:
            cells = row(run(), expected)
        except (pytest.skip.Exception, Unavailable) as missing:
            print(f"{name:34}  not here: {missing}", flush=True)
            continue
        print(f"{name:34}{cells[0]:>12}{cells[1]:>12}{cells[2]:>10}{cells[3]:>10}", flush=True)


if __name__ == "__main__":
    main()
