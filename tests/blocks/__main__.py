"""Run the documentation's blocks: ``python -m tests.blocks [PAGE ...]``.

The wheel is built, each list of requirements that a page installs gets a new environment, and each page a new folder.
``--newest`` takes the newest Python of the machine instead of this one, ``--here`` this environment and source tree.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.blocks.environments import Environments, build_wheel, newest_python
from tests.blocks.pages import ROOT, blocks, pages
from tests.blocks.running import Failure, Run


def run_page(page: Path, environments: Environments, folder: Path) -> tuple[int, int]:
    """Run a page in an empty folder; the numbers of blocks that were run and skipped.

    Raises:
        Failure: A block failed; those after it were not run.
    """
    run, skipped, done = Run(folder, environments), 0, 0
    try:
        for block in blocks(page):
            if block.skipped:
                print(f"  {block.page}:{block.line} is skipped: {block.skipped}", flush=True)
                skipped += 1
            else:
                run.run(block)
                done += 1
    finally:
        run.close()
    return done, skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pages; 1 if a block of one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.blocks", description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="all by default")
    parser.add_argument("--wheel", type=Path, help="a wheel that was built before")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--here", action="store_true", help="in this environment, with the source tree")
    where.add_argument("--newest", action="store_true", help="on the newest Python of this machine")
    chosen = parser.parse_args(arguments)
    python = None if chosen.here else newest_python() if chosen.newest else Path(sys.executable)
    if chosen.newest and python is None:
        print("No Python above 3.11 is on this machine: nothing was run.")
        return 0
    failures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = None if chosen.here else chosen.wheel or build_wheel(folder)
        environments = Environments(python, wheel and wheel.absolute(), folder)
        print(f"{python or sys.executable}, {platform.platform()}", flush=True)
        chosen_pages = [path.absolute() for path in chosen.pages] or pages()
        needed = [{block.requirements for block in blocks(page) if not block.skipped} for page in chosen_pages]
        for number, page in enumerate(chosen_pages):
            began, empty = time.monotonic(), folder / f"page-{number}"
            empty.mkdir()
            try:
                done, skipped = run_page(page, environments, empty)
                said = f"{done} blocks ran, {skipped} skipped"
            except Failure as failure:
                failures.append(str(failure))
                said = "FAILED"
            environments.keep(set().union(*needed[number + 1 :]))
            print(f"{page.relative_to(ROOT)}: {said}, {time.monotonic() - began:.0f} s", flush=True)
    print("\n\n".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
