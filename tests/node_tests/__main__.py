"""Run all node tests of ONNX's backend suite, and write the results.

``python -m tests.node_tests --page docs/OPERATORS.md`` takes about two minutes. It fails where a gradient is wrong or
building it crashes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.node_tests.backward import WAYS
from tests.node_tests.cases import collect, differentiable
from tests.node_tests.oracle import CRASH, RIGHT, WRONG, Result, check, verdict
from tests.node_tests.page import PAGE, Row, page, read_list, write_list


def _kept(written: Mapping[str, str]) -> dict[str, Result]:
    """The results of a test that was right in every way, so that it need not run again."""
    right = {way: Result(RIGHT) for way, result in written.items() if result == RIGHT}
    return right if len(right) == len(WAYS) else {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.node_tests", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="Where the table is written.")
    parser.add_argument("--rest", action="store_true", help="Only tests that the list has not as right in every way.")
    parser.add_argument("--only", default="", help="Tests with this in their names; then nothing is written.")
    options = parser.parse_args()
    tests = collect()
    named = [test for test in tests if test is not None and options.only in test.name]
    listed = read_list() if options.rest else {}
    chosen = [test for test in named if (test.name in listed if options.rest else differentiable(test))]
    rows = [Row(test.name, test.op, _kept(listed.get(test.name, {})) or check(test)) for test in chosen]
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
