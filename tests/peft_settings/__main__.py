"""Check adapters of peft, and write the page.

``python -m tests.peft_settings`` tries what ``results.tsv`` does not have yet, and writes ``docs/PEFT.md``. It may be
stopped at any time; ``--again`` tries everything. It fails where a loss is wrong.
"""

from __future__ import annotations

import argparse
import sys

from tests.architectures.check import Result
from tests.peft_settings.cases import CASES
from tests.peft_settings.check import check
from tests.peft_settings.page import PAGE, page, read_results, write_results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.peft_settings", description=__doc__)
    parser.add_argument("--only", default="", help="Cases with this in their names, whatever the results have.")
    parser.add_argument("--again", action="store_true", help="All cases, whatever the results have.")
    options = parser.parse_args()
    results: dict[str, Result] = {} if options.again else read_results()
    for case in CASES:
        if options.only not in case.name or (case.name in results and not options.only):
            continue
        result = results[case.name] = check(case)
        write_results(results)
        print(case.name, result.status, result.detail, flush=True)
    PAGE.write_text(page(CASES, results), encoding="utf-8")
    return int(any(result.status in ("wrong", "failed") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
