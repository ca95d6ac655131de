"""Fuzzes the readers: ``python -m tests.fuzz --inputs 100000 --page docs/FUZZING.md``."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from tests.fuzz.measure import Found
from tests.fuzz.page import page
from tests.fuzz.running import run
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Try the targets; 1 where one of them is not good."""
    options = _options()
    names = options.target or list(TARGETS)
    found: dict[str, Found] = {}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        results = pool.map(run, names, repeat(options.inputs), repeat(options.seed))
        for name, (what, one) in zip(names, results, strict=True):
            found[what] = one
            print(
                f"{name}: {one.inputs} inputs, {one.refused} refused, {one.escapes} other errors, "
                f"slowest {one.seconds * 1e3:.0f} ms, largest {one.megabytes:.0f} MB",
                flush=True,
            )
            _keep(one, options.keep)
    if options.page:
        options.page.write_text(page(found, options.seed), encoding="utf-8")
    return 0 if all(one.good for one in found.values()) else 1


def _keep(found: Found, folder: Path | None) -> None:
    """Report what escaped, and store the inputs that led to it."""
    for error, content in found.escaped.items():
        name = hashlib.sha256(content).hexdigest()[:16]
        print(f"  {error}" + ("" if folder is None else f" ({folder / name})"))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="Changed files for each reader.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the changes.")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="A reader; all by default.")
    parser.add_argument("--jobs", type=int, default=1, help="Readers that are tried at a time.")
    parser.add_argument("--page", type=Path, help="File to write the results to.")
    parser.add_argument("--keep", type=Path, help="Folder for inputs that lead to other errors.")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
