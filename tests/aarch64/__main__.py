"""Prints how near aarch64 comes to x86-64 (or to PyTorch, for the golden bundle), a line per processor and case.

python -m tests.aarch64                                      the golden bundle, and a small one over an int8 base
python -m tests.aarch64 --minilm                             MiniLM as well: minutes
python -m tests.aarch64 --beside .venv-oldest/bin/python     another environment of this machine, for comparison
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.aarch64.board import CPUS, install, python
from tests.aarch64.cases import compare, golden, minilm_int8, small_int8


def main() -> None:
    """Install the board, and train on it and here."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.aarch64", description=__doc__, formatter_class=form)
    parser.add_argument("--minilm", action="store_true", help="train MiniLM too")
    parser.add_argument("--beside", type=Path, metavar="PYTHON", help="an interpreter with another onnxruntime")
    options = parser.parse_args()
    sides: dict[str, Callable[..., str]] = {cpu: install(cpu).python for cpu in CPUS}
    if options.beside is not None:
        sides["beside"] = partial(_beside, options.beside.absolute())
    print(f"{'largest difference':30} {'losses':>10} {'evaluation':>10} {'outputs':>10} {'update':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = [golden(), small_int8(folder / "small"), *([minilm_int8(folder / "minilm")] if options.minilm else [])]
        for side, run in sides.items():
            for case, found in zip(cases, compare(run, cases, folder / side), strict=True):
                figures = (found.losses, found.evaluation, found.outputs, found.update)
                print(f"{f'{side}: {case.name}':30}", *(f"{figure:10.1e}" for figure in figures), flush=True)


def _beside(interpreter: Path, *arguments: object, cwd: Path) -> str:
    return python([interpreter], arguments, cwd)


if __name__ == "__main__":
    main()
