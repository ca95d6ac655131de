"""Makes file operations of every command fail: ``python -m tests.faults --page docs/FAULTS.md``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.faults.page import page
from tests.faults.points import points


def main() -> int:
    """Run the points, report failures, and write the page; exit with 1 if something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="Run every so many points only.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="Commands whose names contain this.")
    parser.add_argument("--page", type=Path, help="Write the table to this file.")
    asked = parser.parse_args()
    found = points(every=asked.every, processes=asked.processes, only=asked.only)
    failed = [point for point in found if point.failure]
    for point in failed:
        print(f"{point.failure}: {point.command}, {point.kind}, operation {point.number}\n{point.detail}\n")
    print(f"{len(found)} points, {len(failed)} failed")
    if asked.page is not None:
        asked.page.write_text(page(found), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
