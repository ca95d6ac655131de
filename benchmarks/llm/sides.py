"""The sides of the comparison, and how their processes are started."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.turns import ROOT

TORCH, INFERENCE, BASELINE = "torch-peft", "ort-inference", "edgepeft-before"

VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "fp32": ("fp32", {"weights": "input"}),
    "int8": ("int8", {"weights": "input"}),
    "int4": ("int4", {"weights": "input"}),
    "int8-small": ("int8", {"weights": "input", "chunks": "small"}),
    "int8-whole": ("int8", {"weights": "constant"}),
    "int8-before": ("int8", {"recompute": "block"}),
}
"""How bundles compute, and settings of ``edgepeft.Compression``; the last two have one graph per program, in
this checkout and in one that has no other."""


@dataclass(frozen=True)
class Side:
    """One of the programs compared.

    Attributes:
        module: What its process runs.
        kind: What ``benchmarks.llm.making`` writes for it; ``None`` if it reads the model directory itself.
        trains: Whether its step trains.
        baseline: Whether it runs the code of another checkout (``--baseline``).
    """

    module: str
    kind: str | None
    trains: bool = True
    baseline: bool = False

    @property
    def bundle(self) -> bool:
        """Whether it reads a bundle."""
        return self.kind in VARIANTS


SIDES = {
    TORCH: Side("benchmarks.llm.torch_side", None),
    INFERENCE: Side("benchmarks.llm.inference_side", "inference", trains=False),
    "edgepeft-fp32": Side("benchmarks.llm.device_side", "fp32"),
    "edgepeft-int8": Side("benchmarks.llm.device_side", "int8"),
    "edgepeft-int4": Side("benchmarks.llm.device_side", "int4"),
    "edgepeft-int8-small": Side("benchmarks.llm.device_side", "int8-small"),
    "edgepeft-int8-whole": Side("benchmarks.llm.device_side", "int8-whole"),
    BASELINE: Side("benchmarks.llm.device_side", "int8-before", baseline=True),
}


def command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of the benchmarks; ``environment`` determines whose edgepeft it imports."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def environment(tree: Path, work: Path) -> dict[str, str]:
    """Return variables with which a process imports these benchmarks, and edgepeft from a checkout.

    Args:
        tree: The checkout.
        work: A folder to which a link to the benchmarks is written: a checkout has benchmarks of its own.
    """
    link = work / "path" / "benchmarks"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT / "benchmarks", target_is_directory=True)
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [link.parent, tree, tree / "export", tree / "runtimes" / "python", *before]
    return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}


def default_sides(baseline: Path | None) -> Sequence[str]:
    """Return the sides that run if none are named."""
    return [name for name, side in SIDES.items() if baseline is not None or not side.baseline]
