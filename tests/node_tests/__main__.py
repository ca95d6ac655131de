"""Run all node tests of ONNX's backend suite, and write the results.

``python -m tests.node_tests --page docs/OPERATORS.md`` takes about two minutes. It fails where a gradient is wrong or
building it crashes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.node_tests.cases import collect, differentiable
from tests.node_tests.oracle import CRASH, WRONG, check, verdict
from tests.node_tests.page import PAGE, Row, page, write_list


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.node_tests", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="Where the table is written.")
    parser.add_argument("--only", default="", help="Tests with this in their names; then nothing is written.")
    options = parser.parse_args()
    tests = collect()
    chosen = [test for test in tests if test is not None and options.only in test.name and differentiable(test)]
    rows = [Row(test.name, test.op, check(test)) for test in chosen]
    bad = [row for row in rows if verdict(row.results).status in (WRONG, CRASH)]
    for row in bad if not options.only else rows:
        for way, result in row.results.items():
            print(f"{row.name:60} {way:10} {result.status} {result.code} {result.detail}")
    if not options.only:
        write_list(rows)
        options.page.write_text(page(rows, len(tests)), encoding="utf-8")
    print(f"{len(rows)} tests, {len(bad)} wrong or crashed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
