"""Check classes of transformers, and write the page.

``python -m tests.architectures`` runs what ``results.tsv`` does not have yet, and writes ``docs/ARCHITECTURES.md``. It
may be stopped at any time, or given ``--seconds``; ``--again`` runs everything. It fails where
a loss is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.architectures.cases import CASES
from tests.architectures.check import Result, check
from tests.architectures.page import PAGE, RESULTS, page, read_results, write_results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("--only", default="", help="Classes with this in their names, whatever the results have.")
    parser.add_argument("--again", action="store_true", help="All classes, whatever the results have.")
    parser.add_argument("--failed", action="store_true", help="Those that are not right.")
    parser.add_argument("--part", default="1/1", help="Part of the classes, such as 2/3, for several processes.")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="No case begins after this time.")
    options = parser.parse_args()
    results: dict[str, Result] = {} if options.again else read_results()
    if options.again and options.part == "1/1":
        RESULTS.unlink(missing_ok=True)
    started = time.monotonic()
    part, parts = map(int, options.part.split("/"))
    for case in CASES[part - 1 :: parts]:
        known = results.get(case.name)
        if options.only not in case.name or (known is not None and not options.only and not options.failed):
            continue
        if options.failed and known is not None and known.status == "right":
            continue
        if time.monotonic() - started > options.seconds:
            break
        begun = time.monotonic()
        result = results[case.name] = check(case)
        write_results({case.name: result})
        print(f"{case.name:45} {time.monotonic() - begun:5.1f} s  {result.status:30} {result.detail}", flush=True)
    results |= read_results()
    left = [case.name for case in CASES if case.name not in results]
    right = sum(result.status == "right" for result in results.values())
    print(f"{right} of {len(CASES)} right, {len(left)} left")
    PAGE.write_text(page(CASES, results), encoding="utf-8")
    return int(any(result.status in ("wrong", "failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
